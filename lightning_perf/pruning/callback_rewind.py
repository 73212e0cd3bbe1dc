"""Lottery-ticket rewinding: the module as it was at an early step, to be put back where the masks are final."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_perf.host import Progress
from lightning_perf.pruning.cut import Cut, kept_part


class Rewind:
    """Parameters and buffers of one early step.

    Args:
        to: the step: a whole number of steps, or a fraction of the run.

    Raises:
        ValueError: neither a step nor a fraction.
    """

    def __init__(self, to: int | float) -> None:
        whole = isinstance(to, int) and not isinstance(to, bool) and to >= 0
        if not whole and not (isinstance(to, float) and 0 < to < 1):
            raise ValueError(
                f"rewind_to={to!r} is neither a step (0, 1, 2, ...) nor a fraction of the run between 0.0 and 1.0."
            )
        self.to = to
        self.saved: dict[str, Tensor] | None = None
        self.done = False

    def is_late(self, start: float, total: float) -> bool:
        """Whether pruning begins before the step, in a run of ``total`` steps."""
        return (self.to / total if isinstance(self.to, int) else self.to) > start

    def check(self, start: float, total: float) -> None:
        """Whether the step comes before pruning begins.

        Raises:
            ValueError: it comes later.
        """
        if self.is_late(start, total):
            raise ValueError(
                f"rewind_to={self.to!r} comes after pruning has begun, at {start:.0%} of {total:g} steps; rewind to an "
                "earlier step, or prune later."
            )

    def watch(self, module: nn.Module, progress: Progress) -> None:
        """Keep the module's tensors if this is the step."""
        here = progress.step if isinstance(self.to, int) else progress.fraction
        if self.saved is None and not self.done and here >= self.to:
            self.saved = {name: tensor.detach().clone() for name, tensor in _tensors(module)}

    @torch.no_grad()
    def back(
        self, module: nn.Module, optimizers: Iterable[Optimizer], shadows: Iterable[tuple[Tensor, Tensor]]
    ) -> None:
        """Put the tensors back in place, forget what optimizers have gathered since, and restart averages from them."""
        assert self.saved is not None
        for name, tensor in _tensors(module):
            if name in self.saved:
                tensor.detach().copy_(self.saved[name])
        for optimizer in optimizers:
            for parameter in module.parameters():
                optimizer.state.pop(parameter, None)
        for parameter, shadow in shadows:
            shadow.copy_(parameter)
        self.saved, self.done = None, True

    def cut(self, cut: Cut) -> None:
        """Follow tensors of which whole channels were taken out."""
        if self.saved is not None:
            self.saved = {name: kept_part(tensor, cut.keep.get(name, {})) for name, tensor in self.saved.items()}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"saved": self.saved, "done": self.done}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` returned."""
        self.saved, self.done = state["saved"], state["done"]


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()
