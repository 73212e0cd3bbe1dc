"""Real steps of the Trainer's own loop, taken by stand-ins: of the run's module, optimizers and counters nothing is used."""

from __future__ import annotations

import importlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lightning_perf._copying import deep_copy
from lightning_perf.host.doors import require
from lightning_perf.host.namespaces import namespace_of
from lightning_perf.host.optimizer_door import raw
from lightning_perf.host.rng import preserved_rng

_FLAGS = ("fused", "foreach")


@dataclass
class Copies:
    """A module, its optimizers and scheduler configurations that hold together and belong to nobody else."""

    module: Any
    optimizers: list[Any]
    schedulers: list[Any]


def copied(trainer: Any, module: Any, optimizers: Sequence[Any], schedulers: Sequence[Any]) -> Copies:
    """Copies on which a step can be rehearsed: they know the Trainer, log for real, and print nothing.

    Raises:
        TypeError, RuntimeError, NotImplementedError: what cannot be copied, in the words of ``copy.deepcopy``.
    """
    return _copied(trainer, module, optimizers, schedulers, {})


def copied_on_shared_weights(trainer: Any, module: Any, first: Copies) -> Copies:
    """Further copies of ``module`` that train the very weights and optimizer state of the ``first`` copies of it.

    Gradients are their own, and all that many such copies cost. Never step two of them at once.
    """
    memo: dict[int, Any] = {}
    for original, parameter in zip(module.parameters(), first.module.parameters(), strict=True):
        memo[id(original)] = memo[id(parameter)] = nn.Parameter(parameter.detach(), parameter.requires_grad)
    for optimizer in first.optimizers:
        for state in optimizer.state.values():
            memo.update((id(value), value) for value in state.values() if isinstance(value, Tensor))
    return _copied(trainer, module, first.optimizers, first.schedulers, memo)


def _copied(
    trainer: Any, module: Any, optimizers: Sequence[Any], schedulers: Sequence[Any], memo: dict[int, Any]
) -> Copies:
    memo[id(trainer)] = trainer
    clone = deep_copy(module, memo)
    clone.trainer = trainer
    clone._metric_attributes = None  # by id of the metrics that were copied
    names = vars(clone)
    for name in ("log", "log_dict"):  # somebody's shorter path, which leads to the module that was copied
        names.pop(name, None)
    names["print"] = _silent
    twins = []
    for optimizer in map(raw, optimizers):
        twin = deep_copy(optimizer, memo)
        for group, own in zip(twin.param_groups, optimizer.state_dict()["param_groups"], strict=True):
            group.update({key: own[key] for key in _FLAGS if key in own})
        twins.append(twin)
    return Copies(clone, twins, deep_copy(list(schedulers), memo))


def _silent(*args: Any, **kwargs: Any) -> None:
    return None


class Part:
    """What a strategy and its copies need to take a step in place of the run's own; ``strategy`` holds the copies.

    ``results`` is the collection that ``self.log`` of the copied module writes to.
    """

    def __init__(self, trainer: Any, strategy: Any) -> None:
        loop = trainer.fit_loop.epoch_loop
        connector = f"{namespace_of(trainer).__name__}.trainer.connectors.logger_connector.result"
        self.strategy = strategy
        self.results: Any = require(importlib.import_module(connector), "_ResultCollection")(training=True)
        self._automatic = type(require(loop, "automatic_optimization"))(trainer)
        self._manual = type(require(loop, "manual_optimization"))(trainer)

    def enter(self, trainer: Any) -> None:
        """From now on the Trainer's next batch is this strategy's; :func:`rehearsal` puts the run's own back."""
        loop = trainer.fit_loop.epoch_loop
        trainer._accelerator_connector.strategy = self.strategy
        loop._results, loop.automatic_optimization, loop.manual_optimization = (
            self.results, self._automatic, self._manual,
        )  # fmt: skip


def rehearse_batch(trainer: Any, batch: Any, batch_idx: int, ready: int) -> None:
    """One batch through Lightning's own optimization, by whoever has entered.

    Args:
        trainer: in a :func:`rehearsal`.
        batch: on its device; the step may change it.
        batch_idx: what the step is told.
        ready: how many batches of an epoch there have been with it, which decides when gradients are accumulated.
    """
    loop = trainer.fit_loop.epoch_loop
    loop.batch_progress.current.ready = ready
    trainer._logger_connector.on_batch_start(batch)
    arguments = require(loop, "_build_kwargs", parameters=("kwargs", "batch", "batch_idx"))(
        OrderedDict(), batch, batch_idx
    )
    if trainer.lightning_module.automatic_optimization:
        loop.automatic_optimization.run(trainer.optimizers[0], batch_idx, arguments)
    else:
        loop.manual_optimization.run(arguments)


@contextmanager
def rehearsal(trainer: Any) -> Iterator[None]:
    """Steps inside, taken by a :class:`Part`, leave no trace outside.

    Random draws, loop counters, results, loggers, callbacks and profiler are the run's own again afterwards, and so is the
    strategy. Callbacks and loggers do not take part. No batch is taken from a loader. What a step does outside of its
    module (files it writes, globals it counts) stays done.

    Raises:
        DoorClosed: if this release of Lightning keeps one of them elsewhere.
    """
    namespace = namespace_of(trainer)
    loop = require(require(trainer, "fit_loop"), "epoch_loop")
    progress = require(loop, "batch_progress")
    dummies = importlib.import_module(f"{namespace.__name__}.loggers.logger")
    kept = [
        (owner, name, require(owner, name))
        for owner, name in (
            (require(trainer, "_accelerator_connector"), "strategy"),
            (loop, "_results"),
            (loop, "automatic_optimization"),
            (loop, "manual_optimization"),
            (progress, "is_last_batch"),
            (progress.current, "ready"),
            (trainer, "callbacks"),
            (trainer, "loggers"),
            (trainer, "profiler"),
            (trainer, "should_stop"),
        )
    ]
    connector = require(trainer, "_logger_connector")
    state = dict(vars(connector))
    with preserved_rng():
        trainer.callbacks, trainer.profiler = [], namespace.profilers.PassThroughProfiler()
        trainer.loggers = [dummies.DummyLogger() for _ in trainer.loggers]
        try:
            yield
        finally:
            for owner, name, value in kept:
                setattr(owner, name, value)
            vars(connector).clear()
            vars(connector).update(state)
