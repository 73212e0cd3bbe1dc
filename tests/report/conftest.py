"""One small report that has everything: pairs, a missing value, curves, samples, notes."""

from __future__ import annotations

import dataclasses

import pytest

from lightning_perf.measuring import Interval
from lightning_perf.report import FINAL_ACCURACY, PEAK_MEMORY, SAMPLES_PER_SECOND, SECONDS_TO_TARGET, Report, Run

SPEEDS = {"plain": (100.0, 110.0, 120.0), "fast": (200.0, 209.0, 252.0)}
TARGETS = {"plain": (30.0, 33.0, 36.0), "fast": (15.0, None, 15.0)}
ACCURACIES = {"plain": (0.90, 0.91, 0.92), "fast": (0.905, 0.90, 0.925)}
MEMORY = {"plain": (4e8, 4e8, 4e8), "fast": (5e8, 5e8, 5e8)}


def make_runs() -> list[Run]:
    runs = []
    for seed in range(3):
        for name in ("plain", "fast"):
            target = TARGETS[name][seed]
            runs.append(
                Run(
                    name,
                    seed,
                    position=len(runs),
                    quantities={
                        "samples_per_second": SPEEDS[name][seed],
                        "seconds_to_target": target,
                        "final_metric": ACCURACIES[name][seed],
                        "peak_memory": MEMORY[name][seed],
                    },
                    curves={"loss": tuple((float(step), 2.0 / (step + 1)) for step in range(5))},
                    samples={"step_seconds": (0.01, 0.011, 0.012, 0.0105)},
                    notes=("memory format changed",) if name == "fast" else (),
                    missing={} if target is not None else {"seconds_to_target": "target 0.9 was not reached"},
                )
            )
    return runs


@pytest.fixture
def report() -> Report:
    return Report(
        "two variants",
        "plain",
        make_runs(),
        [SAMPLES_PER_SECOND, SECONDS_TO_TARGET, dataclasses.replace(FINAL_ACCURACY, label="val_acc"), PEAK_MEMORY],
        machine={"cpu": "Test CPU", "cores": 2, "gpu": None, "memory_bytes": 2**33},
        versions={"torch": "2.13.0"},
        notes=["The machine was quiet."],
        resolution=Interval(1.0, 0.97, 1.02, 0.75, 3),
        created="2026-01-02T03:04:05+00:00",
    )
