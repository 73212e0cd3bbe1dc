"""LightningCLI, ours and a user's own: short names, class paths, ``--print_config``, help, complaints, completion."""

from __future__ import annotations

import importlib
import inspect
import io
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import lightning_perf as lp
from lightning_perf.cli import main
from lightning_perf.cli.completion_command import completion_script, options_of
from lightning_perf.cli.short_names import callback_classes, strategy_names
from lightning_perf.cli.trainer_cli import trainer_command
from lightning_perf.cli.yaml_lines import config_files, lines_of
from lightning_perf.host import PerfCallback

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")

MODEL = "--model=lightning.pytorch.demos.boring_classes.BoringModel"
QUIET = {"logger": False, "accelerator": "cpu", "enable_progress_bar": False, "enable_checkpointing": False}
WORDS = [f"--trainer.{key}={str(value).lower()}" for key, value in QUIET.items()]
#: Arguments beside the defaults, in the words of a command line: what is required, and values of every shape.
ARGUMENTS = {
    "ChannelPruning": [["target=0.8"], ["target=0.5", "round_to=4"]],
    "MagnitudePruning": [["sparsity=0.5"], ["sparsity=0.9", "start=0.1"]],
    "OptimizerFactory": [
        [],
        ["optimizer=adamw", "lr=3e-3", "groups={'head.*': {lr: 1e-4}}"],
        ["optimizer=lion", "lr=auto"],
    ],
    "ThroughputProfiler": [[], ["roofline=false"]],
}
CASES = [(name, words) for name in callback_classes() for words in ARGUMENTS.get(name, [[]])]


def printed(args: list[str]) -> str:
    """What a command prints before it exits with status 0."""
    out = io.StringIO()
    with redirect_stdout(out), pytest.raises(SystemExit) as done:
        main(args)
    assert not done.value.code
    return out.getvalue()


def ours(trainer: Any) -> list[PerfCallback]:
    return [callback for callback in trainer.callbacks if isinstance(callback, PerfCallback)]


def own_cli(ns: ModuleType, args: Any) -> Any:
    """A user's own LightningCLI, with fixed classes."""
    demos = importlib.import_module(f"{ns.__name__}.demos.boring_classes")
    cli: Any = importlib.import_module(f"{ns.__name__}.cli").LightningCLI
    return cli(demos.BoringModel, demos.BoringDataModule, run=False, args=args, save_config_callback=None)


@pytest.mark.parametrize(
    ("name", "words"), CASES, ids=lambda value: value if isinstance(value, str) else ",".join(value)
)
def test_every_callback_by_its_short_name(name: str, words: list[str], tmp_path: Path) -> None:
    """From the command line to ``--print_config`` and back, in our CLI and in a user's own of both namespaces."""
    args = [f"--trainer.callbacks={name}", *(f"--trainer.callbacks.{word}" for word in words)]
    config = tmp_path / "printed.yaml"
    config.write_text(printed(["fit", MODEL, *WORDS, *args, "--print_config"]))
    [made] = ours(trainer_command([MODEL, *WORDS, *args], run=False).trainer)
    assert type(made) is getattr(lp, name)
    assert printed(["fit", "--config", str(config), "--print_config"]) == config.read_text()
    settings = yaml.safe_load(config.read_text())
    (tmp_path / "again.yaml").write_text(yaml.safe_dump({key: settings[key] for key in ("trainer", "model")}))
    [again] = ours(trainer_command(["--config", str(tmp_path / "again.yaml")], run=False).trainer)
    assert repr(again) == repr(made)
    listed = settings["trainer"]["callbacks"]
    entry = listed[0] if isinstance(listed, list) else listed
    assert entry["class_path"] == f"lightning_perf.{name}"
    for namespace in ("lightning.pytorch", "pytorch_lightning"):
        own = {"trainer": {**QUIET, "callbacks": [entry]}}
        [theirs] = ours(own_cli(importlib.import_module(namespace), own).trainer)
        assert repr(theirs) == repr(made)


@pytest.mark.parametrize("name", strategy_names())
def test_every_preset_by_its_name(name: str, ns: ModuleType) -> None:
    """In our CLI and in a user's own; there the names are known once a callback's class path was read, or ours imported."""
    made = trainer_command([MODEL, *WORDS, "--trainer.devices=2", f"--trainer.strategy={name}"], run=False)
    assert made.trainer.strategy.preset.name == name  # type: ignore[attr-defined]
    theirs = own_cli(ns, [*WORDS, "--trainer.devices=2", f"--trainer.strategy={name}"])
    assert theirs.trainer.strategy.preset.name == name


def test_a_strategy_by_its_class(ns: ModuleType) -> None:
    """``class_path`` with arguments, in the spelling of the namespace; the printed config makes the same."""
    home = "lightning_perf" if ns.__name__ == "lightning.pytorch" else "lightning_perf.pl"
    entry = {"class_path": f"{home}.PerfDDP", "init_args": {"preset": "perf_local_sgd", "average_every": 3}}
    made = own_cli(ns, {"trainer": {**QUIET, "devices": 2, "strategy": entry}})
    again = own_cli(ns, yaml.safe_load(made.parser.dump(made.config)))
    for cli in (made, again):
        assert (cli.trainer.strategy.preset.name, cli.trainer.strategy._period._every) == ("perf_local_sgd", 3)


@pytest.mark.parametrize("name", callback_classes())
def test_help_comes_from_the_docstring(name: str) -> None:
    """The summary and every argument's line."""
    shown = " ".join(printed(["fit", f"--trainer.callbacks.help={name}"]).split())
    kind = getattr(lp, name)
    for argument in callback_arguments(kind):
        described = kind.__doc__.partition(f"{argument}: ")[2].split("\n")[0]
        assert described, f"{name}: {argument} is not in the docstring"
        assert " ".join(described.split()) in shown.replace("\n", " ")


def callback_arguments(kind: type[PerfCallback]) -> list[str]:
    parameters = inspect.signature(kind).parameters.values()
    return [one.name for one in parameters if one.kind is not inspect.Parameter.VAR_KEYWORD]


@pytest.mark.parametrize(
    ("body", "line", "words"),
    [
        ("max_epohcs: 1", 3, "does not accept option 'trainer.max_epohcs'"),
        (
            "callbacks:\n  - class_path: OptimizerFactory\n    init_args:\n      lrr: 0.1",
            6,
            "Option 'lrr' is not accepted",
        ),
        ("callbacks:\n  - FastLogging\n  - class_path: OptimizerFactry", 5, "OptimizerFactry"),
        ("callbacks:\n  - class_path: OptimizerFactory\n    init_args:\n      lr: abc", 6, 'Parser key "lr"'),
    ],
)
def test_a_complaint_names_the_line(
    body: str, line: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "my.yaml"
    config.write_text("seed_everything: 1\ntrainer:\n  " + body.replace("\n", "\n  ") + "\n")
    with pytest.raises(SystemExit) as done:
        main(["fit", MODEL, "--config", str(config)])
    assert done.value.code == 2
    said = capsys.readouterr().err
    assert f"error: {config}:{line}: " in said
    assert words in said
    assert "usage:" not in said


def test_a_complaint_about_the_command_line_names_no_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "my.yaml").write_text("trainer:\n  max_epochs: 1\n")
    with pytest.raises(SystemExit):
        main(["fit", MODEL, f"--config={tmp_path / 'my.yaml'}", "--trainer.max_epohcs=1"])
    assert "my.yaml" not in capsys.readouterr().err


def test_lines_and_files(tmp_path: Path) -> None:
    text = "a:\n  b: 1\nc:\n  - class_path: X\n    init_args: {b: [x, y]}\n"
    assert [lines_of(name, text) for name in ("b", "a.b", "c.b", "X", "y", "z")] == [[2, 5], [2], [5], [4], [5], []]
    assert lines_of("a", "a: [") == []
    (tmp_path / "x.yaml").write_text("")
    path = str(tmp_path / "x.yaml")
    assert (
        config_files(["fit", "--config", path, f"--config={path}", "-c", "none.yaml", "--config"]) == [Path(path)] * 2
    )


def test_completion(tmp_path: Path) -> None:
    """The script as bash runs it: commands, options, short names, also behind an equals sign."""
    options = {name: options_of(name, main) for name in ("fit", "run", "doctor")}
    assert {"--trainer.max_epochs", "--lossless", "--config"} <= set(options["fit"])
    assert {"--callbacks", "--strategy"} <= set(options["run"])
    (tmp_path / "c.sh").write_text(completion_script(options))

    def completed(*words: str) -> list[str]:
        typed = " ".join(f"'{word}'" for word in words)
        ask = f"source c.sh; COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; _lightning_perf; echo ${{COMPREPLY[@]}}"
        done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True, cwd=tmp_path)
        return done.stdout.split()

    assert completed("lightning-perf", "d") == ["doctor"]
    assert completed("lightning-perf", "fit", "--trainer.max_ep") == ["--trainer.max_epochs"]
    assert completed("lightning-perf", "run", "--callbacks", "Fa") == ["FastLogging"]
    assert completed("lightning-perf", "fit", "--trainer.callbacks", "=", "Ch") == ["ChannelPruning", "ChannelsLast"]
    assert completed("lightning-perf", "fit", "--trainer.strategy", "=") == strategy_names()
    assert completed("lightning-perf", "doctor", "x") == []


@pytest.mark.slow
def test_the_completion_command() -> None:
    shown = printed(["completion", "bash"])
    assert "        race) words='" in shown
    assert "--trainer.callbacks" in shown


def test_the_command_line_itself_brings_no_warning(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder, capsys: pytest.CaptureFixture[str]
) -> None:
    """LightningCLI warns of words that are given beside a command line, even if they are the same."""
    boring = "lightning.pytorch.demos.boring_classes.BoringModel"
    monkeypatch.setattr(sys, "argv", ["lightning-perf", "fit", f"--model={boring}", "--print_config"])
    with pytest.raises(SystemExit):
        main()
    assert f"class_path: {boring}" in capsys.readouterr().out
    assert [str(one.message) for one in recwarn if "args parameter" in str(one.message)] == []
