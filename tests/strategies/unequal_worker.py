"""Fits with buffers that differ in shape between processes, or that one alone has; started by ``test_unequal.py``."""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import lightning.pytorch as ns
import torch
import torch.distributed as dist
from torch import nn

import lightning_perf as lp
from tests.ranks import run_cases
from tests.strategies.modules import rows
from tests.strategies.worker import LOCAL, counted, everywhere, flat, ranks_are_equal, trainer_of

#: How many rows a process adds to its queue, by rank and number of the batch; six batches an epoch, two epochs.
GROWTH = {
    "none": lambda rank, step: 0,
    "shaped": lambda rank, step: 0,
    "queue": lambda rank, step: 1 + rank,
    "late_on_zero": lambda rank, step: int(rank == 0 and step == 4),
    "late_on_one": lambda rank, step: int(rank == 1 and step == 4),
    "alone": lambda rank, step: 2 if rank == 1 and step == 4 else 0,
    "alike": lambda rank, step: 1,
}
PRESETS = ("perf_ddp", "perf_local_sgd")


class Memory(ns.LightningModule):
    """A norm, a mean that every process changes and reads, and a queue of rows seen."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.steps, self.expected = kind, 0, torch.zeros(3, 6)
        if kind == "shaped":
            self.expected = torch.zeros(3 + 4 * int(os.environ["RANK"]), 6)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
        self.centre: torch.Tensor
        self.register_buffer("centre", torch.zeros(6))
        if kind not in ("none", "alone"):
            self.register_buffer("queue", self.expected.clone())

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, rank, step = batch[0], dist.get_rank(), self.steps
        self.centre.mul_(0.9).add_(x.mean(0), alpha=0.1)
        news = x[:1].repeat(GROWTH[self.kind](rank, step), 1) + rank
        self.expected = torch.cat([self.expected, news])
        if self.kind == "alone" and len(news):
            self.register_buffer("queue", self.expected.clone())
        elif len(news):
            self.queue = torch.cat([self.queue, news])
        elif self.kind.startswith("late"):
            self.queue += 0.0  # written in every step: it travels
        self.steps += 1
        if self.kind == "alike":
            x = x - self.queue.mean()
        return self.net(x - self.centre).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.net(batch[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def fit(kind: str, strategy: Any, folder: Path) -> tuple[Memory, Counter[str], list[str]]:
    torch.manual_seed(3)
    module, trainer = Memory(kind), trainer_of(strategy, folder, num_sanity_val_steps=0)
    with counted() as counts:
        trainer.fit(module, rows(shuffle=False), rows(8, shuffle=False))
    return module, counts, getattr(trainer.strategy, "messages", [])


def check(kind: str, preset: str, folder: Path) -> dict[str, Any]:
    """Beside the same module without the queue: all the rest is the same, and the queue is the process's own."""
    options = LOCAL if preset == "perf_local_sgd" else {"agree_every": 1}
    plain, counts, _ = fit("none", lp.PerfDDP(preset=preset, **options), folder)
    module, more, messages = fit(kind, lp.PerfDDP(preset=preset, **options), folder)
    rest = [buffer for name, buffer in module.named_buffers() if name != "queue"]
    return {
        "weights": everywhere(torch.equal(flat(plain.parameters()), flat(module.parameters()))),
        "rest": everywhere(torch.equal(flat(plain.buffers()), flat(rest))),
        "own": everywhere(torch.equal(getattr(module, "queue", module.expected), module.expected)),
        "equal": ranks_are_equal(module.parameters()),
        "messages": messages,
        "more": dict(more - counts),
    }


def check_alike(folder: Path) -> dict[str, Any]:
    """A queue that grows on all processes alike, by other rows on each, ends as in ddp."""
    plain, perf = fit("alike", "ddp", folder)[0], fit("alike", "perf_ddp", folder)[0]
    return {
        "weights": everywhere(torch.equal(flat(plain.parameters()), flat(perf.parameters()))),
        "queue": everywhere(torch.equal(plain.queue, perf.queue)),
        "rows": len(perf.queue),
    }


def main(out: str, *only: str) -> None:
    folder = Path(out).parent
    cases: dict[str, Any] = {"alike": lambda: check_alike(folder)}
    for preset in PRESETS:
        for kind in GROWTH:
            if kind not in ("none", "alike"):
                cases[f"{preset}-{kind}"] = lambda kind=kind, preset=preset: check(kind, preset, folder)
    run_cases({name: case for name, case in cases.items() if not only or name in only}, Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
