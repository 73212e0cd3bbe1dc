"""What ThroughputProfiler costs per training step on the CPU: everything on but the FLOP count, against no profiler.

    python -m benchmarks.profiler_overhead

Two modules: one whose step is next to nothing and takes about a millisecond in Lightning's loop, and one whose step takes
two. The profiler is switched on and off in turns *within one fit*, so that both sides share heap and caches, in five
fits; the time of a step is the first quintile of a block, by processor time of one thread.
Goals: <= 10 us a step; <= 1 % of a 1 ms step.
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
from torch import nn

from benchmarks.goals import quiet_trainer
from lightning_perf import ThroughputProfiler, hardware, measuring

RESULTS = Path(__file__).parent / "results" / "profiler_overhead.json"
GOAL_MICROSECONDS, GOAL_SHARE = 10.0, 0.01
FITS = 5


class Step(L.LightningModule):
    """A step of the size of its layers, with one log."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.ReLU())]
        self.net = nn.Sequential(*layers)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        """Mean of the output."""
        loss = self.net(batch).mean()
        self.log("loss", loss, on_step=True, on_epoch=False)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=1e-3)


MODULES = {"1 ms step": (8, 1, 8), "2 ms step": (256, 4, 48)}


class Switch(L.Callback):
    """Puts a profiler beside the training for every second block of steps, and keeps the time of each block's steps.

    The first steps of a block are left out: those in which the profiler looks into memory and keeps a timeline.
    """

    def __init__(self, block: int = 300, skip: int = 50) -> None:
        self.block, self.skip = block, skip
        self.blocks: dict[bool, list[float]] = {False: [], True: []}
        self._ticks: list[float] = []
        self._profiler: ThroughputProfiler | None = None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Read the clock; at the end of a block, switch."""
        self._ticks.append(time.process_time())
        if len(self._ticks) <= self.block:
            return
        seconds = [b - a for a, b in pairwise(self._ticks[self.skip :])]
        self.blocks[self._profiler is not None].append(1e6 * statistics.quantiles(seconds, n=5)[0])
        self._ticks.clear()
        if self._profiler is None:
            self._profiler = ThroughputProfiler(flops=False, roofline=False)
            self._profiler.setup(trainer, pl_module, "fit")
            self._profiler.on_train_start(trainer, pl_module)
            trainer.callbacks.append(self._profiler)
        else:
            trainer.callbacks.remove(self._profiler)
            self._profiler.teardown(trainer, pl_module, "fit")
            self._profiler = None


def measure_module(
    width: int, depth: int, batch: int, blocks: int, fits: int = FITS
) -> tuple[list[float], list[float]]:
    """Microseconds per step of the blocks without and with the profiler, in pairs, over several fits."""
    plain, profiled = [], []
    for _ in range(fits):
        off, on = measure_fit(width, depth, batch, blocks // fits)
        plain += off
        profiled += on
    return plain, profiled


def measure_fit(width: int, depth: int, batch: int, blocks: int) -> tuple[list[float], list[float]]:
    """The pairs of blocks of one fit."""
    switch = Switch()
    steps = 2 * blocks * (switch.block + 1) + 2
    trainer = quiet_trainer([switch], max_epochs=-1, max_steps=steps)
    data: Any = torch.randn(64 * batch, width)
    loader = torch.utils.data.DataLoader(data, batch_size=batch)
    trainer.fit(Step(width, depth), loader)
    pairs = min(len(times) for times in switch.blocks.values())
    return switch.blocks[False][:pairs], switch.blocks[True][:pairs]


def measure(blocks: int) -> dict[str, Any]:
    """Both modules; the content of the results file."""
    rows, samples = [], {}
    with measuring.watch_contention() as watch:
        for name, sizes in MODULES.items():
            plain, profiled = measure_module(*sizes, blocks)
            samples[name] = {"plain": plain, "profiled": profiled}
            cost = measuring.paired_difference(profiled, plain)
            share = measuring.paired_ratio(profiled, plain)
            rows.append(
                {
                    "name": name,
                    "step_microseconds": statistics.median(plain),
                    "cost_microseconds": [cost.estimate, cost.low, cost.high],
                    "ratio": [share.estimate, share.low, share.high],
                }
            )
    return {
        "benchmark": "profiler_overhead",
        "unit": "microseconds of processor time per training step, first quintile of a block of 250 steps",
        "goals": {"1 ms step": f"<= {GOAL_MICROSECONDS:g} us, {GOAL_SHARE:.0%}", "2 ms step": "none set"},
        "machine": hardware.machine(),
        "versions": hardware.versions(),
        "contention": watch.result.sentence(),
        "rows": rows,
        "samples": samples,
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=50, help="blocks of 300 steps on each side")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    result = measure(arguments.blocks)
    for row in result["rows"]:
        cost, ratio = row["cost_microseconds"], row["ratio"]
        print(
            f"{row['name']:12} {row['step_microseconds']:8.0f} us  profiler {cost[0]:+.1f} us "
            f"[{cost[1]:+.1f}, {cost[2]:+.1f}]"
            f"  {ratio[0]:.4f}x [{ratio[1]:.4f}, {ratio[2]:.4f}]  goal {result['goals'][row['name']]}"
        )
    print(result["contention"])
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
