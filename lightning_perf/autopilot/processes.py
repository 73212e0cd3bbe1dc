"""One measured fit of a config in a process of its own, started as a user starts it: by its module's name."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_perf.report import Run

WORKER = "lightning_perf.cli.worker"


def run_in_process(job: Mapping[str, Any], *, quiet: bool = True, worker: str = WORKER) -> Run:
    """The run that the worker measured.

    Args:
        job: what :mod:`lightning_perf.cli.worker` takes, but for the path of its result.
        quiet: keep the worker's output to the last line of an error.
        worker: the module to start instead of that one.

    Raises:
        RuntimeError: the process failed; with the last line that it wrote.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run.json"
        command = [sys.executable, "-m", worker, json.dumps({**job, "out": str(out)})]
        done = subprocess.run(command, capture_output=quiet, text=True)
        if done.returncode != 0 or not out.exists():
            last = (done.stderr or "").strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
            raise RuntimeError(f"the process of {job['variant']} (seed {job['seed']}) failed: {last[0]}")
        return Run(**json.loads(out.read_text(encoding="utf-8")))
