"""Latency of what the runs of a recipe were exported to: all of them in one process, in turns."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_perf import load_artifact
from lightning_perf.deploy.latency import measure
from lightning_perf.deploy.load import call_of

SUFFIX = ".lpx"
ROUNDS = 41


def latencies(folder: Path, rounds: int = ROUNDS) -> dict[str, float]:
    """Median seconds of a call with one sample on one thread, by name of the artefact; none where it needs its module."""
    runs: dict[str, Callable[[Sequence[Tensor]], Any]] = {}
    tensors: list[Tensor] = []
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        loaded: Any = load_artifact(path, threads=1)  # called as the module it was exported from
        call = dataclasses.replace(call_of(loaded.manifest), method="forward")
        tensors = [torch.zeros_like(tensor) for tensor in call.tensors]
        runs[path.stem] = lambda given, call=call, loaded=loaded: call.make(loaded, given)
    if not runs:
        return {}
    return {name: statistics.median(found) for name, found in measure(runs, tensors, rounds=rounds).items()}
