"""A measured run of a config beside files of the user's own fits."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_perf import ThroughputProfiler
from lightning_perf.cli import worker
from lightning_perf.cli.profile_command import profile_config
from tests.cli.test_race_command import MODULE

BRINGS = """

class Brings(Line):
    def configure_callbacks(self):
        return [pl.callbacks.EarlyStopping("val_loss"), pl.callbacks.ModelCheckpoint("ck", "best")]
"""
SAVER = {"dirpath": "ck", "filename": "best", "enable_version_counter": False, "save_last": True}
CALLBACKS = [
    {"class_path": "EarlyStopping", "init_args": {"monitor": "val_loss", "mode": "min"}},
    {"class_path": "ModelCheckpoint", "init_args": SAVER},
]
LOGGER = {"class_path": "CSVLogger", "init_args": {"save_dir": "logs", "name": "mine", "version": "v"}}


@pytest.fixture(params=["named", "brought"])
def config(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A config with a checkpoint, an early stopping and a logger, which has been fitted before."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "worker_line", raising=False)
    Path("worker_line.py").write_text(MODULE + BRINGS)
    trainer = {"max_epochs": 2, "accelerator": "cpu", "logger": LOGGER, "enable_progress_bar": False}
    named = request.param == "named"
    parts: dict[str, Any] = {
        "trainer": {**trainer, **({"callbacks": CALLBACKS} if named else {})},
        "model": {"class_path": f"worker_line.{'Line' if named else 'Brings'}"},
        "data": {"class_path": "worker_line.Data"},
    }
    Path("line.yaml").write_text(yaml.safe_dump(parts))
    for name in ("ck/best.ckpt", "ck/last.ckpt", "logs/mine/v/metrics.csv"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(f"mine: {name}")
    return "line.yaml"


def there() -> dict[str, bytes]:
    """Every file of the user's."""
    kept = (path for part in ("ck", "logs", "checkpoints", "lightning_logs") for path in Path(part).rglob("*"))
    return {str(path): path.read_bytes() for path in kept if path.is_file()}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("pace", [None, {"steps": 4, "evaluations": 1, "seconds": None}], ids=["compare", "race"])
def test_a_measured_run_leaves_the_users_files_alone(pace: Any, config: str, tmp_path: Path) -> None:
    before, folder = there(), tmp_path / "job"
    folder.mkdir()
    job = {"args": ["--config", config], "variant": "a", "seed": 1, "position": 0, "out": str(folder / "run.json")}
    worker.main(json.dumps({**job, "metric": None, "mode": None, "target": None, "pace": pace}))
    run = json.loads((folder / "run.json").read_text())
    assert run["error"] is None
    assert run["quantities"]["final_metric"] > 0
    assert there() == before
    assert bool(list(folder.rglob("*.ckpt"))) == (pace is None)  # a comparison measures the cost of saving, too


@pytest.mark.filterwarnings("ignore")
def test_a_profile_ends_in_the_midst_of_an_epoch(config: str) -> None:
    """Where an early stopping of the config's or the module's would miss the metric of the validation that has not been."""
    before = there()
    report = profile_config(config, steps=4, profiler=ThroughputProfiler(roofline=False, flops=False))
    assert report.steps > 0
    assert there() == before
