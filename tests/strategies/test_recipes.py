"""``ddp.yaml`` of every recipe, on two processes that Lightning starts itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.recipes.small import CONFIGS, arguments

pytestmark = [pytest.mark.ddp, pytest.mark.slow]  # a minute a recipe of processes: make test-all
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("config", [c for c in CONFIGS if c.stem == "ddp"], ids=lambda path: path.parent.name)
def test_ddp_yaml_fits_two_batches(config: Path, tmp_path: Path) -> None:
    small = ["--trainer.accelerator=cpu", "--trainer.fast_dev_run=2", *arguments(config, tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "lightning_perf", "fit", "--config", str(config), *small],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "Starting with 2 processes" in done.stdout + done.stderr
    assert "`Trainer.fit` stopped: `max_steps=2` reached." in done.stdout + done.stderr
