"""A stand-in for the strategy, set up as another preset, that takes steps with copies of the module and the optimizers."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import FunctionType
from typing import Any

import torch

from lightning_perf.host import Undo
from lightning_perf.host.fused_sync import FusedSync, log_through
from lightning_perf.host.rehearsal import Copies, Part, rehearse_batch
from lightning_perf.strategies.presets import Preset


class CountedLog:
    """For steps without any exchange: keeps what is logged in its process, and counts what would have been reduced."""

    def __init__(self) -> None:
        self.count = 0

    def step(self) -> AbstractContextManager[None]:
        """Nothing has to be collected."""
        return nullcontext()

    def later(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        """What Lightning calls for a value that is to be reduced."""
        self.count += 1
        return tensor

    def settle(self) -> None:
        """Nothing is under way."""


class Understudy:
    """Takes whole steps of the Trainer as ``row`` would.

    Args:
        strategy: the strategy of the run; only looked at.
        row: the preset to stand in for.
        copies: what to train.
        arguments: of DDP; ``None`` for a step without any exchange.
    """

    def __init__(self, strategy: Any, row: Preset, copies: Copies, arguments: dict[str, Any] | None) -> None:
        self.name = row.name
        trainer = strategy.lightning_module.trainer
        self._trainer, self._plain = trainer, row.plain
        twin = object.__new__(type(strategy))
        # Methods that somebody wrapped on the instance lead to the strategy itself.
        wrapped = {
            key
            for key, value in vars(strategy).items()
            if isinstance(value, FunctionType) and hasattr(type(strategy), key)
        }
        twin.__dict__.update({key: value for key, value in vars(strategy).items() if key not in wrapped})
        twin.acting, twin.choice, twin.messages = row, None, []
        twin._undo_run, twin._sync, twin._buffers, twin._ragged = Undo(), None, None, None
        twin._int8, twin._residuals, twin._local, twin._undecided = None, None, None, False
        twin._precision_plugin = copy.copy(strategy.precision_plugin)
        if getattr(twin._precision_plugin, "scaler", None) is not None:
            twin._precision_plugin.scaler = copy.deepcopy(strategy.precision_plugin.scaler)
        twin._lightning_module = twin.model = copies.module
        twin.optimizers, twin.lr_scheduler_configs = copies.optimizers, copies.schedulers
        self.copies, self._twin = copies, twin
        self._part = Part(trainer, twin)
        self.logged: CountedLog | None = None
        if arguments is None:
            self.logged = twin._sync = CountedLog()
            log_through(self._part.results, self.logged.later)
            return
        twin._ddp_kwargs = {**arguments, "init_sync": False}  # what weights are does not matter to a clock
        twin.configure_ddp()
        if twin._buffers is not None:
            twin._buffers.watch()
        if not row.plain:
            twin._sync = FusedSync(twin.root_device, twin.reduce)
            log_through(self._part.results, twin._sync.later)

    def step(self, batch: Any, index: int, clock: Callable[[], float] = time.perf_counter) -> float:
        """One optimizer step on copies of ``batch``, started by all processes together; returns its seconds."""
        trainer, every = self._trainer, 1
        if self.copies.module.automatic_optimization:
            every = int(min(trainer.accumulate_grad_batches, trainer.num_training_batches))
        batches = [copy.deepcopy(batch) for _ in range(every)]
        self._part.enter(trainer)
        device = self._twin.root_device
        _wait(device)
        if self.logged is None:
            self._twin.barrier()
        start = clock()
        for micro, one in enumerate(batches):
            if self._plain and self.logged is None:
                self._ask_for_sigterm()
            rehearse_batch(trainer, one, index * every + micro, micro + 1)
        if self._twin._sync is not None:
            self._twin._sync.settle()
        _wait(device)
        seconds = clock() - start
        for parameter in self.copies.module.parameters():
            parameter.grad = None
        return seconds

    def _ask_for_sigterm(self) -> None:
        """What Lightning does before every batch, where this release does it."""
        loop = self._trainer.fit_loop.epoch_loop
        ask = getattr(type(loop), "_broadcast_sigterm_tensor", None)
        if ask is not None:
            ask(loop)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
