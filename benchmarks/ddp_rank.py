"""One process of benchmarks/ddp.py: every variant of a part, round after round, in one process group."""

from __future__ import annotations

import json
import logging
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist

from benchmarks.ddp_parts import BASELINE, NOTHING, PARTS, Part
from benchmarks.goals import quiet_trainer
from lightning_perf import measuring
from lightning_perf.strategies.compression import mean_of_payloads, padded, quantize_with_feedback
from lightning_perf.strategies.link import probe_link


class StepClock(pl.Callback):
    """When each micro-batch started, and what its forward and its backward took; ends the fit after so many."""

    def __init__(self, batches: int) -> None:
        self.batches = batches
        self.starts: list[float] = []
        self.forward: list[float] = []
        self.backward: list[float] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.starts.append(time.perf_counter())
        trainer.should_stop = len(self.starts) >= self.batches

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        self._turn = time.perf_counter()
        self.forward.append(self._turn - self.starts[-1])

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        self.backward.append(time.perf_counter() - self._turn)


def fit(part: Part, variant: str) -> dict[str, Any]:
    """One fit: seconds a step by the slowest process, the steps of this one, and what came before the second.

    ``perf_ddp_auto`` tries behind the callbacks' ``on_train_batch_start``, so that its trials lie before the second.
    """
    clock, module, begin = StepClock(part.batches), part.module(variant), time.perf_counter()
    local = int(os.environ["LOCAL_WORLD_SIZE"])
    trainer = quiet_trainer(
        [clock],
        strategy=part.variants[variant](),
        devices=local,
        num_nodes=int(os.environ["WORLD_SIZE"]) // local,
        accumulate_grad_batches=part.accumulate,
    )
    trainer.fit(module, part.loader(trainer.world_size))
    ticks = clock.starts[:: part.accumulate][part.skip : part.skip + part.steps + 1]
    slowest = torch.tensor([(ticks[-1] - ticks[0]) / part.steps, clock.starts[1] - begin])
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    first = part.skip * part.accumulate
    return {
        "step_seconds": slowest[0].item(),
        "before_seconds": slowest[1].item(),
        "chosen": choice_of(trainer),
        "steps": [b - a for a, b in pairwise(ticks)],
        "forward": statistics.median(clock.forward[first:]),
        "backward": statistics.median(clock.backward[first:]),
    }


def choice_of(trainer: Any) -> str:
    """What ``perf_ddp_auto`` chose, in its own words; empty for the others."""
    choice = getattr(trainer.strategy, "choice", None)
    return "" if choice is None else str(choice)


def facts(part: Part) -> dict[str, Any]:
    """The link as the process group sees it, and what the module has to exchange."""
    link, module = probe_link(torch.device("cpu"), rounds=10), part.module(NOTHING)
    sizes = [parameter.numel() for parameter in module.parameters() if parameter.requires_grad]
    return {
        "latency": link.latency,
        "bandwidth": link.bandwidth,
        "sizes": sizes,
        "buffer_bytes": sum(buffer.numel() * buffer.element_size() for buffer in module.buffers()),
        "coding": {"bf16": _seconds(_bfloat16(sum(sizes))), "int8": _seconds(_int8(sum(sizes)))},
    }


def _seconds(work: Callable[[], object], repeats: int = 9) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _bfloat16(count: int) -> Callable[[], object]:
    gradients = torch.randn(count)

    def work() -> None:
        small = gradients.to(torch.bfloat16)
        torch.add(small.to(torch.float32), small.to(torch.float32), out=gradients).div_(2)

    return work


def _int8(count: int) -> Callable[[], object]:
    gradients, residual = torch.randn(padded(count)), torch.zeros(padded(count))

    def work() -> None:
        payload = quantize_with_feedback(gradients, residual)
        gradients.copy_(mean_of_payloads([payload, payload]))

    return work


def main() -> None:
    """Run a part; rank 0 writes what was measured."""
    part, rounds, out = PARTS[sys.argv[1]], int(sys.argv[2]), Path(sys.argv[3])
    os.sched_setaffinity(0, {int(os.environ["RANK"]) % (os.cpu_count() or 1)})
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo")
    known, runs = facts(part), []
    fit(part, BASELINE)  # opens connections, and fills caches
    for index, order in enumerate(measuring.schedule(part.variants, rounds)):
        runs += [{"variant": name, "round": index, **fit(part, name)} for name in order]
    if dist.get_rank() == 0:
        out.write_text(json.dumps({**known, "runs": runs}))
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # a thread of gloo that still lets go of a tensor aborts an interpreter that ends (pytorch#190489)


if __name__ == "__main__":
    main()
