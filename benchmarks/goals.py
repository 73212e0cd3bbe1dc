"""What every benchmark does with its result: judge it by its goal, print it, keep it as a file."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from lightning_perf.measuring import Interval
from lightning_perf.report import Report, Run

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Goal:
    """A number that was set before the measurement: the ``bound`` of the interval must be at least ``value``."""

    quantity: str
    variant: str
    value: float
    bound: str = "estimate"

    def judge(self, report: Report) -> str:
        """One line: the goal, the interval, met or not met."""
        interval: Interval | None = report.comparison(self.quantity, self.variant)
        words = f"{self.variant} vs {report.baseline}, {report.quantity(self.quantity).label}: goal >= {self.value:g}x"
        if interval is None:
            return f"{words}; not measured"
        met = getattr(interval, self.bound) >= self.value
        where = "" if self.bound == "estimate" else f" ({self.bound} bound)"
        return f"{words}{where}; measured {interval}: {'met' if met else 'NOT met'}"


def publish(report: Report, name: str, goals: list[Goal]) -> None:
    """Print the table and the verdicts, and write ``benchmarks/results/NAME.json``."""
    print(report.table())
    for goal in goals:
        print(goal.judge(report))
    path = RESULTS / f"{name}.json"
    report.to_json(path)
    print(f"raw samples: benchmarks/results/{name}.json")


def clocked(
    work: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    repeats: int = 1,
    warmup: int = 1,
    **more: Mapping[str, float],
) -> list[Run]:
    """Every piece of work once a round, ``repeats`` calls together, in an order that changes.

    Runs hold ``cpu_seconds`` and ``wall_seconds`` of one call, and of each further keyword the number under the work's name.
    """
    names, shuffled, runs = list(work), random.Random(0), []
    for call in work.values():
        for _ in range(warmup):
            call()
    for round_ in range(rounds):
        shuffled.shuffle(names)
        for name in names:
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(repeats):
                work[name]()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            quantities = {"cpu_seconds": cpu / repeats, "wall_seconds": wall / repeats}
            quantities |= {key: values[name] for key, values in more.items() if name in values}
            runs.append(Run(name, round_, len(runs), quantities=quantities))
    return runs


def quiet_trainer(callbacks: list[Any], **arguments: Any) -> pl.Trainer:
    """One epoch on the CPU, with nothing of the Trainer's beside the training itself but ``arguments``."""
    settings: dict[str, Any] = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return pl.Trainer(**(settings | arguments), callbacks=callbacks)
