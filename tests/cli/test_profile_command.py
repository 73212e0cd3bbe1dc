"""``lightning-perf profile``: a wrong request is told in one line; what fails in the training keeps its traceback."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lightning_perf import ThroughputProfiler
from lightning_perf.cli import profile_command
from lightning_perf.cli.profile_command import profile_config
from lightning_perf.cli.trainer_cli import trainer_command


@pytest.fixture
def config(tmp_path: Path) -> str:
    """A file that is there."""
    path = tmp_path / "my.yaml"
    path.write_text("{}")
    return str(path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config", "missing.yaml"], "'missing.yaml' does not exist"),
        (["--config", "my.yaml", "--steps", "0"], "steps=0 trains nothing"),
        (["--config", "my.yaml", "--json", "my.yaml/out.json"], "my.yaml"),
    ],
    ids=str,
)
def test_a_wrong_request_is_one_line(
    arguments: list[str], words: str, config: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(Path(config).parent)
    with pytest.raises(SystemExit) as ended:
        profile_command.run(arguments)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_an_exception_of_the_users_module_is_theirs(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(profile_command, "trainer_command", fail)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        profile_command.run(["--config", config])


def rank(number: int) -> SimpleNamespace:
    """A CLI of that rank that has trained nothing."""
    return SimpleNamespace(trainer=SimpleNamespace(is_global_zero=number == 0))


def test_too_few_steps_are_said(config: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(profile_command, "trainer_command", lambda *args, **kwargs: rank(0))
    with pytest.raises(SystemExit):
        profile_command.run(["--config", config, "--steps", "1"])
    assert "no step was timed in --steps 1" in capsys.readouterr().err


BORING = """
trainer: {accelerator: cpu, logger: false, enable_progress_bar: false, enable_model_summary: false}
model: lightning.pytorch.demos.boring_classes.BoringModel
data: lightning.pytorch.demos.boring_classes.BoringDataModule
"""


@pytest.mark.filterwarnings("ignore")
def test_no_checkpoint_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither of the default callback nor of one that the config names; ``fit`` leaves both."""
    monkeypatch.chdir(tmp_path)
    Path("my.yaml").write_text(BORING)
    saver = ["--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint", "--trainer.callbacks.dirpath=kept"]
    saver += ["--trainer.callbacks.every_n_train_steps=2"]
    for more in ([], saver):
        trainer_command(["fit", "--config", "my.yaml", "--trainer.max_steps=4", *more])
        left = list(Path().rglob("*.ckpt"))
        assert left, "fit itself keeps one"
        for one in left:
            one.unlink()
        report = profile_config("my.yaml", steps=4, overrides=more, profiler=ThroughputProfiler(roofline=False))
        assert report.steps > 0
        assert not list(Path().rglob("*.ckpt"))


def test_only_the_first_rank_tells(config: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(profile_command, "show", lambda *args, **kwargs: shown.append(args))
    monkeypatch.setattr(ThroughputProfiler, "has_report", True)
    monkeypatch.setattr(ThroughputProfiler, "report", "what was measured")
    for number, times in ((1, 0), (0, 1)):
        cli = rank(number)
        monkeypatch.setattr(profile_command, "trainer_command", lambda *args, cli=cli, **kwargs: cli)
        assert profile_command.run(["--config", config]) == 0
        assert len(shown) == times
