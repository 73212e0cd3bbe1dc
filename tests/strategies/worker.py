"""All cases of a world size in one process group, one process a rank; started by ``test_ranks.py``."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import lightning.pytorch as ns
import torch
import torch.distributed as dist

import lightning_perf as lp
from tests.strategies.modules import make, rows


@dataclass(frozen=True)
class Case:
    """A module, how it is trained, and what DDP itself is told."""

    name: str
    kind: str = "Plain"
    optimizer: str = "adamw"
    trainer: dict[str, Any] = field(default_factory=dict)
    ddp: dict[str, Any] = field(default_factory=dict)
    callbacks: Callable[[], list[Any]] = list


CASES = (
    Case("sgd", optimizer="sgd"),
    Case("adamw_clipped", trainer={"gradient_clip_val": 0.1}),
    Case("accumulated", trainer={"accumulate_grad_batches": 2}),
    Case("two_optimizers", "TwoOptimizers"),
    Case("unused", "Unused", ddp={"find_unused_parameters": True}),
    Case("tied", "Tied"),
    Case("changing_buffers", "Changing"),
    Case("frozen_norm", "Frozen"),
    Case("teacher", "Teacher", ddp={"find_unused_parameters": True}),
    Case("fast_logging", callbacks=lambda: [lp.FastLogging()]),
    Case("no_buffers", "Frozen", ddp={"forward_sync_buffers": False}),
)


def fit(case: Case, strategy: Any, folder: Path, **arguments: Any) -> tuple[Any, Any]:
    """A module trained for two epochs with validation, and its Trainer."""
    module = make(case.kind, ns, optimizer=case.optimizer)
    torch.manual_seed(11 + int(os.environ["RANK"]))
    trainer = ns.Trainer(
        **{
            "max_epochs": 2,
            "accelerator": "cpu",
            "devices": int(os.environ["WORLD_SIZE"]),
            "strategy": strategy,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": folder,
            "callbacks": case.callbacks(),
            **case.trainer,
            **arguments,
        }
    )
    trainer.fit(module, rows(), rows(8, shuffle=False))
    return module, trainer


def flat(tensors: Any) -> torch.Tensor:
    return torch.cat([tensor.detach().double().flatten() for tensor in tensors])


def everywhere(flag: bool) -> bool:
    """Whether it holds on every rank."""
    vote = torch.tensor([int(flag)])
    dist.all_reduce(vote, op=dist.ReduceOp.MIN)
    return bool(vote.item())


def ranks_are_equal(tensors: Any) -> bool:
    mine = flat(tensors)
    gathered = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, mine)
    return all(torch.equal(gathered[0], other) for other in gathered)


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """How often each collective is called from Python."""
    counts: Counter[str] = Counter()

    def wrap(name: str) -> Callable[..., Any]:
        original = getattr(dist, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return original(*args, **kwargs)

        return call

    names = ("all_reduce", "broadcast", "barrier", "_broadcast_coalesced", "all_gather_into_tensor")
    with mock.patch.multiple(dist, **{name: wrap(name) for name in names}):
        yield counts


def check_exact(case: Case, preset: str, folder: Path) -> dict[str, Any]:
    """The preset beside plain ddp: parameters, losses and metrics on every rank; buffers where the checkpoint is written."""
    plain, trainer = fit(case, ns.strategies.DDPStrategy(**case.ddp), folder)
    with counted() as counts:
        perf, perf_trainer = fit(case, lp.PerfDDP(preset=preset, **case.ddp), folder)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    found = {name: float(value) for name, value in perf_trainer.callback_metrics.items()}
    return {
        "parameters": everywhere(torch.equal(flat(plain.parameters()), flat(perf.parameters()))),
        "buffers": everywhere(dist.get_rank() > 0 or torch.equal(flat(plain.buffers()), flat(perf.buffers()))),
        "losses": everywhere(plain.seen == perf.seen),
        "metrics": everywhere(metrics == found),
        "apart": {name: (metrics[name], found.get(name)) for name in metrics if metrics[name] != found.get(name)},
        "equal_ranks": ranks_are_equal(perf.parameters()),
        "counts": dict(counts),
        "messages": perf_trainer.strategy.messages,
    }


def main(out: str, *only: str) -> None:
    torch.set_num_threads(1)
    folder = Path(out).parent
    results: dict[str, Any] = {}
    cases: dict[str, Callable[[], Any]] = {}
    for case in CASES:
        cases[f"perf_ddp-{case.name}"] = lambda case=case: check_exact(case, "perf_ddp", folder)
    for name, case in cases.items():
        if only and name not in only:
            continue
        try:
            results[name] = case()
        except Exception:
            results[name] = {"error": traceback.format_exc()}
            break  # the ranks may have parted; the cases after this one are reported as not run
    if dist.get_rank() == 0:
        Path(out).write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
