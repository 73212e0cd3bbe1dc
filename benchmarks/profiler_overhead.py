"""What ThroughputProfiler costs per training step on the CPU: everything on but the FLOP count, against no profiler.

    python -m benchmarks.profiler_overhead

Two modules: one whose step is next to nothing, where the cost in microseconds is seen best, and one whose step takes about
a millisecond, where it is seen as a share. Short fits with and without the profiler alternate; the time of a step is the
first quintile of a fit, by processor time of one thread. Goals: <= 10 us a step; <= 1 % of a 1 ms step.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from torch import nn

from benchmarks.self_log import StepClock
from lightning_perf import ThroughputProfiler, hardware, measuring

RESULTS = Path(__file__).parent / "results" / "profiler_overhead.json"
GOAL_MICROSECONDS, GOAL_SHARE = 10.0, 0.01


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


MODULES = {"tiny step": (8, 1, 8), "1 ms step": (256, 4, 48)}


def step_time(width: int, depth: int, batch: int, profiled: bool, steps: int) -> dict[str, float]:
    """Microseconds per step of one short fit, by clock."""
    clock = StepClock()
    profiler = [ThroughputProfiler(flops=False, roofline=False)] if profiled else []
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[clock, *profiler],
    )
    data: Any = torch.randn(steps * batch, width)
    trainer.fit(Step(width, depth), torch.utils.data.DataLoader(data, batch_size=batch))
    return clock.step(skip=steps // 5)


def measure(rounds: int, steps: int) -> dict[str, Any]:
    """Both variants of both modules in every round; the content of the results file."""
    variants = {(name, profiled): (*sizes, profiled) for name, sizes in MODULES.items() for profiled in (False, True)}
    for variant in variants.values():
        step_time(*variant, steps)
    samples: dict[str, list[float]] = {f"{name}, {'profiled' if on else 'plain'}": [] for name, on in variants}
    with measuring.watch_contention() as watch:
        for order in measuring.schedule(list(map(str, range(len(variants)))), rounds):
            for index in order:
                name, on = list(variants)[int(index)]
                value = step_time(*variants[name, on], steps)["cpu"]
                samples[f"{name}, {'profiled' if on else 'plain'}"].append(value)
    rows = []
    for name in MODULES:
        plain, profiled = samples[f"{name}, plain"], samples[f"{name}, profiled"]
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
        "unit": "microseconds of processor time per training step, first quintile of a fit",
        "goals": {"tiny step": f"<= {GOAL_MICROSECONDS:g} us", "1 ms step": f"<= {GOAL_SHARE:.0%}"},
        "machine": hardware.machine(),
        "versions": hardware.versions(),
        "contention": watch.result.sentence(),
        "rounds": rounds,
        "steps": steps,
        "rows": rows,
        "samples": samples,
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="rounds in which every variant runs once")
    parser.add_argument("--steps", type=int, default=400, help="training steps of each run")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    result = measure(arguments.rounds, arguments.steps)
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
