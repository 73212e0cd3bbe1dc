"""Averaging of weights between processes that train by themselves."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_perf.strategies.alike_buffers import AlikeBuffers

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
        """Go on after so many steps, with equal weights everywhere, and average when the run before would have."""
        whole = max(taken - self._warmup, 0) // self._every
        self._taken, self._averaged = taken, self._warmup + whole * self._every

    def due(self, taken: int) -> bool:
        """Whether it is time to average, after so many steps in all."""
        self._taken = taken
        if taken - self._averaged < self._every:
            return False
        self._averaged = taken
        return True


def average(tensors: Iterable[Tensor], device: torch.device) -> None:
    """Replace every tensor, in place, by its mean over all processes; integers become those of rank 0.

    They travel from ``device``, wherever they are: not every backend has a way for tensors on the CPU.
    """
    floating, others = [], []
    for tensor in tensors:
        (floating if tensor.is_floating_point() or tensor.is_complex() else others).append(tensor)
    _together(floating, _mean, device)
    as_on_zero(others, device)


def as_on_zero(tensors: Iterable[Tensor], device: torch.device) -> None:
    """Replace every tensor, in place, by that of rank 0; they travel from ``device``."""
    _together(tensors, lambda flat: dist.broadcast(flat, src=0), device)


def _mean(flat: Tensor) -> None:
    dist.all_reduce(flat)
    flat /= dist.get_world_size()


def _together(tensors: Iterable[Tensor], collective: Callable[[Tensor], object], device: torch.device) -> None:
    """Call ``collective`` on flat copies, on ``device``, of many tensors at a time; write back what it made of them."""
    kinds: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        if tensor.numel():
            kinds.setdefault(tensor.dtype, []).append(tensor)
    for alike in kinds.values():
        for chunk in _chunks(alike):
            flat = torch.cat([tensor.reshape(-1).to(device) for tensor in chunk])
            collective(flat)
            parts = flat.split([tensor.numel() for tensor in chunk])
            for tensor, part in zip(chunk, parts, strict=True):
                tensor.copy_(part.view(tensor.shape))


def average_module(
    module: nn.Module, alike: AlikeBuffers, device: torch.device, shadows: Iterable[Tensor] = ()
) -> None:
    """Average all parameters, whichever optimizer moves them, the buffers that all processes have, and ``shadows``.

    Shadows are kept beside the parameters. What DDP is told to ignore is left out. ``device`` is that of the process, from
    which tensors travel. Whether buffers still are what was agreed on travels along: where they are not in some process, it
    is agreed anew, and they travel once more.
    """
    with torch.no_grad():
        weights = [parameter.data for name, parameter in module.named_parameters() if name not in alike.own]
        floating = next((one for one in weights if one.is_floating_point()), torch.empty(0))
        buffers, odd = alike.parcel(alike.names), floating.new_full((1,), not alike.holds())
        means = [buffer.clone() for buffer in buffers]
        average([*weights, *shadows, odd, *means], device)
        if odd:
            alike.agree()
            buffers = alike.parcel(alike.names)
            means = [buffer.clone() for buffer in buffers]
            average(means, device)
        for buffer, mean in zip(buffers, means, strict=True):
            buffer.copy_(mean)


@dataclass
class _Leaves:
    """What optimizers keep: tensors, and where numbers are."""

    tensors: list[Tensor] = field(default_factory=list)
    numbers: list[tuple[Any, Any]] = field(default_factory=list)

    def collect(self, place: Any) -> None:
        """Everything below a dictionary or a list."""
        for key, value in place.items() if isinstance(place, dict) else enumerate(place):
            if isinstance(value, Tensor):
                self.tensors.append(value)
            elif isinstance(value, dict | list):
                self.collect(value)
            elif isinstance(value, int | float):
                self.numbers.append((place, key))

    def layout(self) -> int:
        """A number that differs between processes if what they hold does."""
        shapes = [(tuple(tensor.shape), str(tensor.dtype)) for tensor in self.tensors]
        return zlib.crc32(repr((shapes, len(self.numbers))).encode())


def adopt_state(optimizers: Iterable[Optimizer], device: torch.device) -> bool:
    """Have all processes go on with the optimizer state of rank 0, as after a restore; collective.

    Tensors travel from ``device``: Adam's count of steps, for one, is on the CPU.

    Returns:
        False, and nothing has changed, if a process has state of other parameters or other shapes.
    """
    leaves = _Leaves()
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            leaves.collect({"state": [optimizer.state.get(parameter, {}) for parameter in group["params"]]})
            leaves.numbers += [(group, key) for key, value in group.items() if isinstance(value, float)]
    layouts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(layouts, leaves.layout())
    if len(set(layouts)) > 1:
        return False
    with torch.no_grad():
        as_on_zero(leaves.tensors, device)
    told = [[place[key] for place, key in leaves.numbers]]
    dist.broadcast_object_list(told, src=0)
    for (place, key), value in zip(leaves.numbers, told[0], strict=True):
        place[key] = value
    return True


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
