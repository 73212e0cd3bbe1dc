"""The callbacks of the house under every preset, in one process group; started by ``test_callback_ranks.py``."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as ns
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy

import lightning_perf as lp
from lightning_perf.host import MisconfigurationException
from lightning_perf.quantization import preparation
from lightning_perf.strategies.presets import PRESETS
from tests.ranks import run_cases
from tests.strategies.auto_worker import LONG, fake_clock, fastest
from tests.strategies.worker import CASE, EqualRanks, everywhere, fit, flat, options, ranks_are_equal

SPARSITY = 0.5
CALLBACKS: dict[str, Callable[[], Any]] = {
    "pruning": lambda: lp.MagnitudePruning(SPARSITY, start=0.0, end=0.5),
    "random_pruning": lambda: lp.MagnitudePruning(SPARSITY, start=0.0, end=0.5, criterion="random"),
    "quantization": lambda: lp.QuantizationAwareTraining(freeze_batch_norm=1.0),
    "adamw": lambda: lp.OptimizerFactory("adamw", lr=3e-3, schedule="warmup_cosine", warmup=2),
    "ema": lambda: lp.OptimizerFactory("adamw", lr=3e-3, ema=0.9),
    "schedule_free": lambda: lp.OptimizerFactory("schedule_free_adamw", lr=1e-2),
    "profiler": lambda: lp.ThroughputProfiler(flops=False, roofline=False),
}


class Uneven(ns.Callback):
    """Rank 1 sees larger numbers, and draws others, so that whatever each process decides alone differs."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        batch[0].mul_(1 + trainer.global_rank)


class Slow(ns.Callback):
    """Rank 1 takes its time before every step."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_rank == 1:
            time.sleep(0.05)


class Look(ns.Callback):
    """Compares the ranks behind every batch, averages of local SGD or not: zeros of weights, ranges of activations."""

    def __init__(self) -> None:
        self.zeros: list[bool] = []
        self.ranges: list[bool] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        weights = [pl_module.net[0].weight, pl_module.net[4].weight]
        self.zeros.append(ranks_are_equal([weight == 0 for weight in weights]))
        shared = preparation(pl_module)
        if shared is not None:
            self.ranges.append(ranks_are_equal([shared.ranges.low, shared.ranges.high]))


def check(preset: str, callback: str, folder: Path) -> dict[str, Any]:
    """One callback under one preset; exact presets beside plain ddp with the same callback."""
    made, look, equal = CALLBACKS[callback](), Look(), EqualRanks()
    beside = [Slow()] if callback == "profiler" else [Uneven(), look, equal]
    saver = ModelCheckpoint(folder / f"{preset}-{callback}", save_top_k=-1, every_n_train_steps=5)
    row, longer = PRESETS[preset], LONG if PRESETS[preset].tries else {}
    strategy = lp.PerfDDP(preset=preset, **options(preset))
    try:
        with fake_clock(fastest("perf_ddp")) if row.tries else nullcontext():
            module, trainer = fit(
                CASE["sgd"], strategy, folder, callbacks=[*beside, made, saver], enable_checkpointing=True, **longer
            )
    except MisconfigurationException as refusal:
        return {"refused": str(refusal)}
    found = {
        "weights": [*equal.equal, ranks_are_equal(module.parameters())],
        "acting": trainer.strategy.acting.name,
        "zeros": look.zeros,
        "ranges": look.ranges,
        "sparsity": lp.sparsity(module).total,
        "optimizer": type(trainer.optimizers[0]).__name__,
        "notes": list(made.report.notes) if callback == "profiler" else [],
    }
    if row.promise == "exact":
        again = [type(one)() for one in beside]
        plain, _ = fit(CASE["sgd"], DDPStrategy(), folder, callbacks=[*again, CALLBACKS[callback]()], **longer)
        found["as_ddp"] = everywhere(torch.equal(flat(plain.parameters()), flat(module.parameters())))
    return found


def main(out: str, *only: str) -> None:
    folder = Path(out).parent
    cases = {
        f"{preset}-{callback}": lambda preset=preset, callback=callback: check(preset, callback, folder)
        for preset in PRESETS
        for callback in CALLBACKS
    }
    run_cases({name: case for name, case in cases.items() if not only or name in only}, Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
