"""Averaging of weights between processes that train by themselves."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

_MOST_BYTES = 32 * 1024 * 1024


class LocalPeriod:
    """Counts optimizer steps: synchronous ones first, then ``every`` local ones between two averages.

    Pure counting, the same in every process.

    Example::

        >>> period = LocalPeriod(every=2, warmup=1)
        >>> [(period.local, period.due(taken)) for taken in range(1, 6)]
        [(False, False), (True, False), (True, True), (True, False), (True, True)]
    """

    def __init__(self, every: int, warmup: int) -> None:
        self._every, self._warmup = every, warmup
        self._taken, self._averaged = 0, warmup

    @property
    def local(self) -> bool:
        """Whether the coming step is local."""
        return self._taken >= self._warmup

    def resume(self, taken: int) -> None:
        """Go on after so many steps, with equal weights everywhere."""
        self._taken, self._averaged = taken, max(taken, self._warmup)

    def due(self, taken: int) -> bool:
        """Whether it is time to average, after so many steps in all."""
        self._taken = taken
        if taken - self._averaged < self._every:
            return False
        self._averaged = taken
        return True


def average(tensors: Iterable[Tensor]) -> None:
    """Replace every tensor, in place, by its mean over all processes; integers become those of rank 0."""
    floating: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        if tensor.is_floating_point() or tensor.is_complex():
            floating.setdefault((tensor.dtype, tensor.device), []).append(tensor)
        elif tensor.numel():
            dist.broadcast(tensor, src=0)
    for group in floating.values():
        for chunk in _chunks(group):
            flat = torch.cat([tensor.reshape(-1) for tensor in chunk])
            dist.all_reduce(flat)
            flat /= dist.get_world_size()
            parts = flat.split([tensor.numel() for tensor in chunk])
            for tensor, part in zip(chunk, parts, strict=True):
                tensor.copy_(part.view(tensor.shape))


def average_module(module: nn.Module, shadows: Iterable[Tensor] = ()) -> None:
    """Average all parameters, whichever optimizer moves them, all buffers, and what is kept beside them (``shadows``)."""
    with torch.no_grad():
        average([*(parameter.data for parameter in module.parameters()), *module.buffers(), *shadows])


def _chunks(tensors: list[Tensor]) -> list[list[Tensor]]:
    """Groups of about equal size, so that the copy that travels stays small beside the module."""
    chunks: list[list[Tensor]] = [[]]
    size = 0
    for tensor in tensors:
        length = tensor.numel() * tensor.element_size()
        if chunks[-1] and size + length > _MOST_BYTES:
            chunks.append([])
            size = 0
        chunks[-1].append(tensor)
        size += length
    return chunks
