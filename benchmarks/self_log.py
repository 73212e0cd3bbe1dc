"""What ``self.log`` costs per training step, in plain Lightning and with ``FastLogging``.

The overhead of a variant is its time per step (first quintile of a short fit) minus that of the same step without a
log, in the same round; CPU time decides, since it feels a busy machine less.
Run ``python benchmarks/self_log.py``; it prints the table and writes ``results/self_log.json`` with the raw samples.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch

from lightning_perf import FastLogging, hardware, measuring

RESULTS = Path(__file__).parent / "results" / "self_log.json"
BOTH = {"on_step": True, "on_epoch": True, "prog_bar": True}
#: Name, number of logs, arguments of each, and the largest overhead that counts as success, in parts of the stock one.
ROWS: tuple[tuple[str, int, dict[str, bool], float | None], ...] = (
    ("1 step log", 1, {"on_step": True, "on_epoch": False}, None),
    ("5 step logs", 5, {"on_step": True, "on_epoch": False}, 1 / 6),
    ("5 step+epoch+bar logs", 5, BOTH, 1 / 5),
)
CLOCKS = {"cpu": time.process_time, "wall": time.perf_counter}


class Logging(L.LightningModule):
    """A step of next to no compute and ``count`` logs."""

    def __init__(self, count: int, arguments: dict[str, Any]) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 2)
        self.count, self.arguments = count, arguments

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        loss = self.layer(batch).mean()
        for index in range(self.count):
            self.log(f"metric_{index}", loss, **self.arguments)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class StepClock(L.Callback):
    """Reads both clocks at the start of every batch."""

    def __init__(self) -> None:
        self.ticks: dict[str, list[float]] = {name: [] for name in CLOCKS}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        for name, clock in CLOCKS.items():
            self.ticks[name].append(clock())

    def step(self, skip: int) -> dict[str, float]:
        """First quintile of the time of a step in microseconds, without the first ``skip``."""
        return {
            name: 1e6 * statistics.quantiles([b - a for a, b in pairwise(ticks[skip:])], n=5)[0]
            for name, ticks in self.ticks.items()
        }


def step_time(count: int, arguments: dict[str, bool], fast: bool, steps: int) -> dict[str, float]:
    """Microseconds per step of one short fit, by clock."""
    clock = StepClock()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[clock, *([FastLogging()] if fast else [])],
    )
    data: Any = torch.randn(steps, 8)
    trainer.fit(Logging(count, arguments), torch.utils.data.DataLoader(data))
    return clock.step(skip=steps // 5)


def measure(rounds: int, steps: int) -> dict[str, Any]:
    """All variants in every round, in the order of `measuring.schedule`; returns the content of the results file."""
    variants: dict[str, tuple[int, dict[str, bool], bool]] = {"no log": (0, {}, False)}
    for name, count, arguments, _ in ROWS:
        variants[f"{name}, stock"] = (count, arguments, False)
        variants[f"{name}, fast"] = (count, arguments, True)
    for variant in variants.values():
        step_time(*variant, steps)
    samples: dict[str, dict[str, list[float]]] = {name: {clock: [] for clock in CLOCKS} for name in variants}
    with measuring.watch_contention() as watch:
        for order in measuring.schedule(variants, rounds):
            for name in order:
                for clock, value in step_time(*variants[name], steps).items():
                    samples[name][clock].append(value)
    return {
        "benchmark": "self_log",
        "unit": "microseconds per training step, first quintile of a fit",
        "machine": hardware.machine(),
        "versions": hardware.versions(),
        "contention": watch.result.sentence(),
        "rounds": rounds,
        "steps": steps,
        "rows": [compare(samples, name, goal) for name, _, _, goal in ROWS],
        "samples": samples,
    }


def compare(samples: dict[str, dict[str, list[float]]], name: str, goal: float | None) -> dict[str, Any]:
    """One row of the table: the overheads and their ratio, by clock."""
    row: dict[str, Any] = {"name": name, "goal": goal}
    for clock in CLOCKS:
        base = samples["no log"][clock]
        stock = [a - b for a, b in zip(samples[f"{name}, stock"][clock], base, strict=True)]
        fast = [a - b for a, b in zip(samples[f"{name}, fast"][clock], base, strict=True)]
        # An overhead below the clock's noise counts as one microsecond, so that the ratio stays defined.
        ratio = measuring.paired_ratio([max(value, 1.0) for value in fast], [max(value, 1.0) for value in stock])
        row[clock] = {
            "stock_overhead": statistics.median(stock),
            "fast_overhead": statistics.median(fast),
            "ratio": ratio.estimate,
            "low": ratio.low,
            "high": ratio.high,
            "level": ratio.level,
        }
    row["reached"] = None if goal is None else row["cpu"]["high"] <= goal
    return row


def table(result: dict[str, Any]) -> str:
    """The rows as text."""
    lines = [f"{'overhead per step':24}{'clock':>6}{'stock us':>10}{'fast us':>10}{'fast / stock':>24}{'goal':>8}"]
    for row in result["rows"]:
        for clock in CLOCKS:
            cell = row[clock]
            ratio = f"{cell['ratio']:.3f} [{cell['low']:.3f}, {cell['high']:.3f}]"
            goal = f"{row['goal']:.3f}" if row["goal"] and clock == "cpu" else ""
            overheads = f"{cell['stock_overhead']:10.0f}{cell['fast_overhead']:10.0f}"
            lines.append(f"{row['name']:24}{clock:>6}{overheads}{ratio:>24}{goal:>8}")
    return "\n".join([*lines, result["contention"]])


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12, help="rounds in which every variant runs once")
    parser.add_argument("--steps", type=int, default=400, help="training steps of each run")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    result = measure(arguments.rounds, arguments.steps)
    print(table(result))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
