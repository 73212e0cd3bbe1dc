"""Collectives that fits start, and whether the process waits for them; started by ``test_collectives.py``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import lightning.pytorch as ns
import torch
import torch.distributed as dist

from tests.ranks import run_cases
from tests.strategies.modules import make, rows
from tests.strategies.worker import Stream, ranks_are_equal, trainer_of

#: Micro-batches of an epoch, and epochs.
LENGTHS = ((1, 1), (1, 3), (2, 2), (3, 2), (8, 1))
STRATEGIES = ("ddp", "perf_ddp")
KINDS = ("Bare", "Stream", "Plain", "Changing")
_NAMES = (
    "all_reduce", "broadcast", "barrier", "reduce", "all_gather", "all_gather_object", "broadcast_object_list",
    "_broadcast_coalesced",
)  # fmt: skip


class Bare(ns.LightningModule):
    """Nothing but a layer: no buffers, nothing logged."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(6, 1)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Phases(ns.Callback):
    """What was called since the fit began, by where in the fit that was: each step begins behind the one before it."""

    def __init__(self) -> None:
        self.waited: dict[str, list[str]] = {}
        self.started: dict[str, list[str]] = {}
        self.phase = "start"

    def note(self, name: str, waits: bool) -> None:
        (self.waited if waits else self.started).setdefault(self.phase, []).append(name)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.phase = f"step {trainer.global_step}"

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.phase = f"step {trainer.global_step}"

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.phase = "end"


@contextmanager
def heard(phases: Phases) -> Iterator[None]:
    """Have ``phases`` hear of every collective that Python starts; DDP's own of gradients are the same for both."""

    def wrap(name: str) -> Callable[..., Any]:
        original = getattr(dist, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            phases.note(name, not kwargs.get("async_op", False))
            return original(*args, **kwargs)

        return call

    with ExitStack() as patches:
        for name in _NAMES:
            patches.enter_context(mock.patch.object(dist, name, wrap(name)))
        yield


def count(strategy: str, kind: str, batches: int, epochs: int, folder: Path) -> dict[str, Any]:
    """One fit, and the collectives in it."""
    phases, module = Phases(), Bare() if kind in ("Bare", "Stream") else make(kind, ns)
    stream = torch.utils.data.DataLoader(Stream(2 * batches, 2 * batches), batch_size=2)
    loader = stream if kind == "Stream" else rows(4 * batches)
    trainer = trainer_of(strategy, folder, max_epochs=epochs, callbacks=[phases])
    with heard(phases):
        trainer.fit(module, loader)
    assert trainer.global_step == batches * epochs
    assert ranks_are_equal(module.parameters())
    return {"waited": phases.waited, "started": phases.started}


def main(out: str) -> None:
    path = Path(out)
    cases: dict[str, Callable[[], Any]] = {}
    for kind in KINDS:
        for batches, epochs in LENGTHS:
            for strategy in STRATEGIES:
                name = f"{strategy}-{kind}-{batches}x{epochs}"
                cases[name] = lambda given=(strategy, kind, batches, epochs): count(*given, path.parent)
    run_cases(cases, path)


if __name__ == "__main__":
    main(*sys.argv[1:])
