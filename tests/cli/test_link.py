"""``lightning-perf link`` between two processes of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_perf.cli import main

ROOT = Path(__file__).parents[2]


@pytest.mark.ddp
def test_link_between_two_processes() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lightning_perf", "link", "--backend", "gloo", "--megabytes", "10"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("2 processes, gloo\nan all-reduce of nothing takes")
    assert "exchange of 10 MB without overlap: float32" in done.stdout


def test_a_link_has_two_ends(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["link", "--processes", "1"])
    assert "a link has two ends; give 2 or more" in capsys.readouterr().err
