"""What a cut leaves of a module: products of a forward pass, parameters, or time on this machine; the same on all ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from lightning_perf.host import arguments_of, preserved_rng
from lightning_perf.profiling.flops import FlopCounter
from lightning_perf.pruning.callback_latency import Eager, Latency
from lightning_perf.pruning.channels import Channels
from lightning_perf.pruning.cut import Cut

MEASURES = ("macs", "parameters", "latency")
Result = TypeVar("Result")


class Measure:
    """The share of a measure that a cut leaves, of what the module has before it.

    Args:
        name: one of :data:`MEASURES`.
        trainer: of the fit.
        channels: of the module.
        batch: on which the module is run.
        say: told how latency is measured.
    """

    def __init__(
        self, name: str, trainer: Any, channels: Channels, batch: Any, say: Callable[[str], None] = lambda text: None
    ) -> None:
        self._name, self._trainer, self._channels = name, trainer, channels
        self._latency: Latency | None = None
        self._whole = 1.0
        if name != "latency":
            self._whole = self._count(self._copy(Cut()))
            return

        def prepare() -> None:
            self._latency = _latency(channels, batch)
            say(self._latency.sentence())

        on_rank_zero(trainer, prepare)

    @property
    def trials(self) -> int:
        """How many cuts are worth measuring on the way to a target: what takes seconds is not asked as often."""
        return 6 if self._name == "latency" else 10

    def __call__(self, cut: Cut) -> float:
        clone = self._copy(cut)
        if self._name == "latency":
            return on_rank_zero(self._trainer, lambda: self._timed(clone))
        return agreed(self._trainer, self._count(clone) / self._whole)

    def _copy(self, cut: Cut) -> nn.Module:
        clone = self._channels.duplicate(self._channels.module).eval()
        cut.apply(clone)
        return clone

    def _count(self, clone: nn.Module) -> float:
        if self._name == "parameters":
            return float(sum(parameter.numel() for parameter in clone.parameters()))
        with torch.no_grad(), FlopCounter() as counter:
            self._channels.loss(clone)
        return counter.count.forward / 2

    def _timed(self, clone: nn.Module) -> float:
        assert self._latency is not None
        with preserved_rng():
            return self._latency.share_of(clone)


def on_rank_zero(trainer: Any, work: Callable[[], Result]) -> Result:
    """What rank zero finds while the others wait.

    Raises:
        RuntimeError: on the others, where it raised something there.
    """
    if trainer.world_size == 1:
        return work()
    found: tuple[Any, str | None] = None, None
    error: Exception | None = None
    if trainer.global_rank == 0:
        try:
            found = work(), None
        except Exception as raised:  # once the others know, it is raised again
            found, error = (None, f"{type(raised).__name__}: {raised}"), raised
    result: Any
    result, words = agreed(trainer, found)
    if error is not None:
        raise error
    if words is not None:
        raise RuntimeError(f"rank 0 failed: {words}")
    return result


def agreed(trainer: Any, value: Result) -> Result:
    """Rank zero's value on all ranks."""
    return trainer.strategy.broadcast(value) if trainer.world_size > 1 else value


def _latency(channels: Channels, batch: Any) -> Latency:
    whole = channels.duplicate(channels.module).eval()
    arguments: tuple[tuple[Any, ...], Mapping[str, Any]] | None = None
    eager: Eager = channels.loss
    with preserved_rng():
        try:
            arguments, _ = arguments_of(channels.module, batch)
        except ValueError:  # no step calls forward(): the step itself is what can be timed
            return Latency(whole, None, eager)
        args, kwargs = arguments
        return Latency(whole, arguments, lambda clone: clone(*args, **kwargs))
