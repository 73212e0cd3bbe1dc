"""Throughput of one session on all cores against one pinned session per core: R20 in int8, batches of 8.

    python -m benchmarks.serving

Each round serves 200 batches. The baseline is one session on one core; "wide" is one session with a thread per core, and
"pinned" is `serve.Pool` with one session per core. No goal was set beforehand.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import lightning_perf as lp
from benchmarks.goals import publish
from benchmarks.runtimes import network
from lightning_perf.deploy.serve import Pool, load
from lightning_perf.measuring import schedule
from lightning_perf.report import Quantity, Report, Run

ROUNDS, BATCHES, SIZE = 9, 200, 8
RATE = Quantity("samples_per_second", "throughput", "samples/s", better="higher", digits=0, kind="speed")
ONE = "1 session, 1 core"


def main() -> None:
    """Measure both runtimes and publish."""
    cores = sorted(os.sched_getaffinity(0))
    module, samples = network("R20")
    batches = [samples[:SIZE].numpy() for _ in range(BATCHES)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "r20.lpx")
        lp.export(module, samples, path, runtimes=["onnxruntime", "openvino"], precisions=["int8"], rounds=0)
        for variant in ("onnxruntime-int8", "openvino-int8"):
            wide = load(path, variant, threads=len(cores))
            with Pool(path, [[cores[0]]], variant) as one, Pool(path, [[core] for core in cores], variant) as many:
                serve: dict[str, Callable[[list[np.ndarray]], Any]] = {
                    ONE: one.map,
                    f"1 session, {len(cores)} threads": lambda items, wide=wide: [wide(item) for item in items],
                    f"{len(cores)} pinned sessions": many.map,
                }
                publish(measured(variant, serve, batches), f"serving_{variant}", [])


def measured(variant: str, serve: dict[str, Callable[[list[np.ndarray]], Any]], batches: list[np.ndarray]) -> Report:
    """Interleaved rounds of all ways to serve."""
    for way in serve.values():
        way(batches[:20])
    runs = []
    for index, names in enumerate(schedule(serve, ROUNDS)):
        for name in names:
            start = time.perf_counter()
            serve[name](batches)
            rate = len(batches) * SIZE / (time.perf_counter() - start)
            runs.append(Run(name, index, quantities={"samples_per_second": rate}))
    runs = [dataclasses.replace(run, position=index) for index, run in enumerate(runs)]
    return Report(f"R20, {variant}, batches of {SIZE}", ONE, runs, [RATE])


if __name__ == "__main__":
    main()
