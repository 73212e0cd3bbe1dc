"""``ddp.yaml`` of both recipes, on two processes that Lightning starts itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.recipes.idx_files import write_files

pytestmark = [pytest.mark.ddp, pytest.mark.slow]  # two minutes of processes: make test-all
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("task", ["image_classification", "language_model"])
def test_ddp_yaml_fits_two_batches(task: str, tmp_path: Path) -> None:
    write_files(tmp_path / "data")
    (tmp_path / "text.txt").write_text("It is a truth universally acknowledged. " * 200)
    tiny = {
        "image_classification": [f"--data.root={tmp_path / 'data'}", "--data.val_size=8", "--data.batch_size=4"],
        "language_model": [f"--data.path={tmp_path / 'text.txt'}", "--data.batch_size=4", "--model.width=16"],
    }[task]
    small = ["--trainer.accelerator=cpu", "--trainer.fast_dev_run=2"]
    config = ROOT / "recipes" / task / "ddp.yaml"
    done = subprocess.run(
        [sys.executable, "-m", "lightning_perf", "fit", "--config", str(config), *small, *tiny],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "Starting with 2 processes" in done.stdout + done.stderr
    assert "`Trainer.fit` stopped: `max_steps=2` reached." in done.stdout + done.stderr
