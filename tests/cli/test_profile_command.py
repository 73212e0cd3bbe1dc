"""``lightning-perf profile``: a wrong request is told in one line; what fails in the training keeps its traceback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lightning_perf.cli import profile_command


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


def test_too_few_steps_are_said(config: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(profile_command, "trainer_command", lambda *args, **kwargs: None)
    with pytest.raises(SystemExit):
        profile_command.run(["--config", config, "--steps", "1"])
    assert "no step was timed in --steps 1" in capsys.readouterr().err
