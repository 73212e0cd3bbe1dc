"""What a constructor refuses: the line of the YAML file, and a traceback only where it is the user's own class."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel

import lightning_perf as lp
from lightning_perf.cli import main
from lightning_perf.cli.trainer_cli import PerfCLI, trainer_command
from lightning_perf.cli.yaml_lines import entries

pytestmark = pytest.mark.filterwarnings("ignore")

WORDS = ["--trainer.logger=false", "--trainer.accelerator=cpu", "--trainer.enable_checkpointing=false"]
NET = """
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel


class Net(BoringModel):
    def __init__(self, width: int = 3, depth: int = 2) -> None:
        super().__init__()
        if width < 1:
            raise RuntimeError(f"a width of {width} is none")


class Data(BoringDataModule):
    def __init__(self, folder: str = "here") -> None:
        super().__init__()
        raise FileNotFoundError("nothing there")
"""


def refused(body: str, words: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What a config ends in, whose constructors refuse something; standard error."""
    (folder / "my.yaml").write_text(body)
    (folder / "wide.py").write_text(NET)
    with pytest.raises(SystemExit) as done:
        main(["fit", f"--config={folder / 'my.yaml'}", *WORDS, *words])
    assert done.value.code == 2
    return capsys.readouterr().err.replace(f"{folder}/", "")


MODEL = "lightning.pytorch.demos.boring_classes.BoringModel"
CALLBACKS = "callbacks:\n    - class_path: "
TWO = (
    f"{CALLBACKS}OptimizerFactory\n      init_args: {{optimizer: adamw, lr: 0.1}}\n    - class_path: OptimizerFactory\n"
)
STRATEGY = "strategy:\n    class_path: lightning_perf.PerfDDP\n    init_args:\n      preset: perf_local_sgd\n"


@pytest.mark.parametrize(
    ("trainer", "words", "said"),
    [
        (
            "callbacks:\n    - class_path: OptimizerFactory\n      init_args:\n        optimizer: adamw\n        lr: -1",
            [],
            "my.yaml:7: OptimizerFactory: lr=-1.0 must be a finite number above 0",
        ),
        (
            f"{CALLBACKS}FastLogging\n    - class_path: lightning_perf.MagnitudePruning\n      init_args: {{sparsity: 2}}",
            [],
            "my.yaml:6: MagnitudePruning: sparsity=2.0 must be",
        ),
        (TWO + "      init_args: {optimizer: adamw, lr: -3e-4}", [], "my.yaml:7: OptimizerFactory: lr=-0.0003 must be"),
        (STRATEGY + "      average_every: 0", [], "my.yaml:7: PerfDDP: average_every=0 must be at least 1"),
        (
            "callbacks: MagnitudePruning",
            ["--trainer.callbacks.sparsity=2"],
            "MagnitudePruning: sparsity=2.0 must",
        ),
        (
            "max_epochs: 1",
            ["--trainer.callbacks=MagnitudePruning", "--trainer.callbacks.sparsity=2"],
            "MagnitudePruning: sparsity",
        ),
        (
            "callbacks:\n    class_path: lightning.pytorch.callbacks.ModelCheckpoint\n    init_args:\n      mode: best",
            [],
            "my.yaml:6: ModelCheckpoint: `mode` can be",
        ),
        ("max_epochs: 1\n  fast_dev_run: -1", [], "my.yaml:4: Trainer: fast_dev_run=-1 is not a valid"),
    ],
)
def test_what_a_constructor_refuses_names_the_line(
    trainer: str, words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of ours and of Lightning's, without a traceback; of two equal classes the one that was refused."""
    shown = refused(f"seed_everything: 1\ntrainer:\n  {trainer}\nmodel: {MODEL}\n", words, tmp_path, capsys)
    assert f"error: {said}" in shown
    assert "Traceback" not in shown
    assert "Union" not in shown


@pytest.mark.parametrize(
    ("body", "words", "said"),
    [
        (
            "model:\n  class_path: wide.Net\n  init_args:\n    depth: 2\n    width: 0\n",
            [],
            "my.yaml:5: Net: RuntimeError: a width",
        ),
        ("model:\n  class_path: wide.Net\n", ["--model.width=0"], "error: Net: RuntimeError: a width of 0 is none"),
        (
            "model:\n  class_path: wide.Net\ndata:\n  class_path: wide.Data\n",
            [],
            "my.yaml:4: Data: FileNotFoundError: nothing there",
        ),
    ],
)
def test_what_the_users_own_class_refuses(
    body: str,
    words: list[str],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The traceback begins in the class, and the line of the config follows it."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wide", raising=False)
    shown = refused(body, words, tmp_path, capsys)
    assert said in shown
    assert 'Traceback (most recent call last):\n  File "wide.py"' in shown


def test_a_class_that_the_cli_fixes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The section then holds the arguments themselves."""

    class Net(BoringModel):
        def __init__(self, width: int = 3) -> None:
            super().__init__()
            raise ValueError(f"width={width} is too much")

    (tmp_path / "my.yaml").write_text("trainer:\n  max_epochs: 1\nmodel:\n  width: 5\n")
    with pytest.raises(SystemExit):
        PerfCLI(Net, BoringDataModule, args=[f"--config={tmp_path / 'my.yaml'}"], run=False)
    assert f"error: {tmp_path / 'my.yaml'}:4: Net: ValueError: width=5 is too much" in capsys.readouterr().err


def test_a_defect_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(lp.FastLogging, "__init__", broken)
    with pytest.raises(Exception, match="a defect"):
        trainer_command([f"--model={MODEL}", *WORDS, "--trainer.callbacks=FastLogging"], run=False)


def test_entries() -> None:
    text = (
        "model:\n  class_path: M\n  init_args:\n    lr: 1\n    act: {class_path: A}\nc+:\n  - X\n  - {a: 1, b: [2]}\n"
    )
    found = [(one.section, one.class_path, one.line, dict(one.lines)) for one in entries(text)]
    assert ("model", "M", 2, {"lr": 4, "act": 5}) in found
    assert ("act", "A", 5, {}) in found
    assert ("c", "X", 7, {}) in found
    assert ("c", None, 8, {"a": 8, "b": 8}) in found
    assert entries("a: [") == []
