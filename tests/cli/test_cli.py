"""The command line: commands, short names, the recipe's YAML files, comparisons in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import lightning_perf as lp
from lightning_perf.cli import main
from lightning_perf.cli.compare_command import compare_configs
from lightning_perf.cli.trainer_cli import trainer_command
from lightning_perf.host import PerfCallback
from tests.recipes.idx_files import write_files
from tests.recipes.small import CONFIGS, arguments

ROOT = Path(__file__).parents[2]
SMALL = ["--trainer.accelerator=cpu", "--trainer.max_epochs=1", "--trainer.limit_train_batches=2"]
SMALL += ["--trainer.limit_val_batches=1", "--trainer.logger=false", "--trainer.enable_checkpointing=false"]
SMALL += ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.devices=1"]
#: What a lever of ours may set in the Trainer.
LEVERS = dict.fromkeys(("callbacks", "strategy", "devices"))


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    """Arguments that point a recipe at a tiny data set."""
    write_files(tmp_path / "data")
    return [f"--data.root={tmp_path / 'data'}", "--data.val_size=8", "--data.batch_size=4", "--data.eval_batch_size=8"]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
@pytest.mark.filterwarnings("ignore")
def test_every_yaml_fits_two_batches(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = arguments(config, tmp_path)
    if config.stem == "channels":  # the cut comes with the second epoch
        tiny = [*tiny, "--trainer.max_epochs=2", "--trainer.limit_train_batches=1"]
    cli = trainer_command(["fit", "--config", str(config), *SMALL, *tiny])
    assert cli.trainer.global_step == 2


def test_yaml_files_only_differ_by_levers() -> None:
    """They train the same module on the same data as baseline.yaml; two processes have half of the steps to log at."""
    for folder in {config.parent for config in CONFIGS}:
        base = yaml.safe_load((folder / "baseline.yaml").read_text())
        for config in folder.glob("*.yaml"):
            other = yaml.safe_load(config.read_text())
            assert other["model"] == base["model"]
            assert other["data"] == base["data"]
            free = LEVERS
            if config.stem == "ddp":
                steps = base["trainer"].get("log_every_n_steps")
                halves = () if steps is None else (steps // 2, (steps + 1) // 2)
                assert other["trainer"].get("log_every_n_steps") in (steps, *halves)
                free = {**LEVERS, "log_every_n_steps": None}
            assert {**other["trainer"], **free} == {**base["trainer"], **free}


@pytest.mark.filterwarnings("ignore")
def test_short_names_and_lossless(data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``FastLogging`` means ``lightning_perf.FastLogging``; ``--lossless`` adds the rest once."""
    monkeypatch.chdir(tmp_path)
    arguments = ["--config", str(ROOT / "recipes/image_classification/baseline.yaml"), *SMALL, *data]
    short = ["--trainer.callbacks+=FastLogging", "--trainer.callbacks+=OptimizerFactory"]
    short += ["--trainer.callbacks.optimizer=adamw", "--trainer.callbacks.schedule=wsd", "--lossless=true"]
    cli = trainer_command([*arguments, *short], run=False)
    ours = [callback for callback in cli.trainer.callbacks if isinstance(callback, PerfCallback)]
    assert sorted(type(callback).__name__ for callback in ours) == [
        "ChannelsLast",
        "ExactResume",
        "FastLogging",
        "MallocTuning",
        "OptimizerFactory",
    ]
    assert next(callback for callback in ours if isinstance(callback, lp.OptimizerFactory)).schedule == "wsd"


def test_usage_version_and_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    assert "lightning-perf compare --config baseline.yaml --config fast.yaml" in capsys.readouterr().out
    main(["--version"])
    assert capsys.readouterr().out.strip() == lp.__version__
    with pytest.raises(SystemExit, match="unknown command 'fitt'; the commands are fit, validate"):
        main(["fitt"])


def test_python_dash_m() -> None:
    out = subprocess.run([sys.executable, "-m", "lightning_perf", "--help"], capture_output=True, text=True, cwd=ROOT)
    assert out.returncode == 0
    assert out.stdout.startswith("usage: lightning-perf COMMAND")


@pytest.mark.filterwarnings("ignore")
def test_compare_command(data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fresh processes, the table, both files; equal seeds give equal accuracy for lossless levers."""
    folder = ROOT / "recipes/image_classification"
    configs = ["--config", str(folder / "baseline.yaml"), "--config", str(folder / "lossless.yaml")]
    files = ["--json", str(tmp_path / "r.json"), "--html", str(tmp_path / "sub" / "r.html")]
    with pytest.raises(SystemExit) as done:
        main(["compare", *configs, "--pairs", "1", *files, "--metric", "val_acc", *SMALL, *data])
    assert done.value.code == 0
    assert "lossless" in capsys.readouterr().out
    saved: dict[str, Any] = json.loads((tmp_path / "r.json").read_text())
    runs = {run["variant"]: run for run in saved["runs"]}
    assert runs["baseline"]["quantities"]["final_metric"] == runs["lossless"]["quantities"]["final_metric"]
    assert runs["baseline"]["quantities"]["peak_memory"] > 0
    assert any("fused" in note for note in runs["lossless"]["notes"])
    assert (tmp_path / "sub" / "r.html").read_text().startswith("<!doctype html>")


def test_bad_configs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="leave nothing to compare"):
        compare_configs(["a.yaml"])
    with pytest.raises(ValueError, match=r"'nope\.yaml' does not exist"):
        compare_configs(["nope.yaml", "nope2.yaml"])
    (tmp_path / "a.yaml").write_text("")
    with pytest.raises(ValueError, match="same names"):
        compare_configs([tmp_path / "a.yaml", tmp_path / "a.yaml"])
    blocked = tmp_path / "file"
    blocked.write_text("")
    a, b = tmp_path / "a.yaml", tmp_path / "b.yaml"
    b.write_text("")
    with pytest.raises(SystemExit):
        main(["compare", "--config", str(a), "--config", str(b), "--html", str(blocked / "r.html")])
    assert "r.html" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")
def test_fit_leaves_the_users_config_alone(data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a logger, LightningCLI would save its config into the working directory, over the user's own file."""
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "config.yaml"
    config.write_text((ROOT / "recipes/image_classification/baseline.yaml").read_text())
    before = config.read_text()
    main(["fit", "--config", "config.yaml", *SMALL, *data])
    assert config.read_text() == before
