"""Tests over several ranks: start one process a rank, run cases in one process group, collect what rank zero found."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

ROOT = Path(__file__).parents[1]


def start(module: str, out: Path, world_size: int, *words: str) -> list[subprocess.Popen[Any]]:
    """``python -m module OUT WORDS...`` on every rank, as torchrun would start it; output goes beside ``out``."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "tests",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    return [
        subprocess.Popen(
            [sys.executable, "-m", module, str(out), *words],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=log_of(out, rank).open("w"),
            stderr=subprocess.STDOUT,
        )
        for rank in range(world_size)
    ]


def log_of(out: Path, rank: int) -> Path:
    """Where the output of a rank goes."""
    return out.with_name(f"rank{rank}.log")


def finish(processes: list[subprocess.Popen[Any]], seconds: float = 300) -> list[int]:
    """Exit codes; whoever has not ended by then is killed, and the test fails."""
    try:
        return [process.wait(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()


def run(module: str, out: Path, world_size: int, *words: str, seconds: float = 300) -> dict[str, Any]:
    """Start, wait, and read the JSON that rank zero wrote to ``out``."""
    codes = finish(start(module, out, world_size, *words), seconds)
    assert not any(codes), "\n".join(log_of(out, rank).read_text()[-4000:] for rank in range(world_size))
    return json.loads(out.read_text())


def run_cases(cases: Mapping[str, Callable[[], Any]], out: Path) -> None:
    """In a rank: run every case, have rank zero write the results, and leave the process group."""
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for name, case in cases.items():
        try:
            results[name] = case()
        except Exception:
            results[name] = {"error": traceback.format_exc()}
            break  # the ranks may have parted; the cases after this one are reported as not run
    if dist.get_rank() == 0:
        out.write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()
