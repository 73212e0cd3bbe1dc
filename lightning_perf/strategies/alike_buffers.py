"""Which buffers are alike in all processes, and so can be sent or averaged.

A queue that every process fills, a cache as long as its longest batch, a buffer that one process makes: plain DDP sends such
buffers all the same, which mixes their numbers with those of others or ends the job.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor, nn

Layout: TypeAlias = tuple[tuple[int, ...], torch.dtype]
Largest: TypeAlias = Callable[[list[int]], list[int]]
Everyone: TypeAlias = Callable[[Any], list[Any]]

_IGNORED = "_ddp_params_and_buffers_to_ignore"


class AlikeBuffers:
    """Agrees on names, shapes and dtypes of buffers; those that differ are each process's own from then on.

    Args:
        module: whose buffers they are.
        largest: for every number, the largest one of all processes.
        everyone: what every process says, in the order of ranks.
        say: takes the line that names what differs.
    """

    def __init__(self, module: nn.Module, largest: Largest, everyone: Everyone, say: Callable[[str], None]) -> None:
        self._module, self._everyone, self._say = module, everyone, say
        self.largest = largest
        #: What is not exchanged: buffers that differ, and what the user has told DDP to ignore.
        self.own: set[str] = set(getattr(module, _IGNORED, ()))
        #: Whether a buffer that all have had another layout at the agreement before.
        self.moved = False
        self._agreed: dict[str, Layout] = {}

    @property
    def names(self) -> list[str]:
        """Of the buffers that all processes have, in the same order in all of them."""
        return list(self._agreed)

    def agree(self, *votes: int) -> list[int]:
        """Find out anew; collective, one all-reduce where nothing differs. Returns the largest of each of ``votes``."""
        mine = self._layouts()
        number = zlib.crc32(repr(mine).encode())
        high, low, *said = self.largest([number, -number, *votes])
        if high != -low:
            found: list[dict[str, Layout]] = self._everyone(mine)
            names = sorted(set().union(*found))
            differing = [name for name in names if any(one.get(name) != found[0].get(name) for one in found)]
            self.own.update(differing)
            self._say(f"buffers that differ between processes stay each one's own: {', '.join(differing)}.")
            mine = {name: layout for name, layout in mine.items() if name not in self.own}
        self.moved = any(self._agreed.get(name) != layout for name, layout in mine.items())
        self._agreed = mine
        return said

    def holds(self) -> bool:
        """Whether the buffers of this process still are what was agreed on."""
        return self._layouts() == self._agreed

    def parcel(self, names: Iterable[str]) -> list[Tensor]:
        """The buffers to send, or to receive into. In the place of one that has changed since the last agreement stands
        what others expect: its numbers, cut or repeated; what it receives is dropped.
        """
        mine, device = dict(self._module.named_buffers()), next(self._module.parameters()).device
        return [_fitted(mine.get(name), self._agreed[name], device) for name in names]

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """While DDP is told by the module what to ignore, that is also what differs."""
        before = vars(self._module).get(_IGNORED)
        setattr(self._module, _IGNORED, sorted(self.own))
        try:
            yield
        finally:
            if before is None:
                delattr(self._module, _IGNORED)
            else:
                setattr(self._module, _IGNORED, before)

    def _layouts(self) -> dict[str, Layout]:
        named = sorted(self._module.named_buffers())
        return {name: _layout(buffer) for name, buffer in named if name not in self.own}


def _layout(tensor: Tensor) -> Layout:
    return tuple(tensor.shape), tensor.dtype


def _fitted(buffer: Tensor | None, layout: Layout, device: torch.device) -> Tensor:
    if buffer is not None and _layout(buffer) == layout:
        return buffer
    shape, dtype = layout
    if buffer is None or not buffer.numel():
        return torch.zeros(shape, dtype=dtype, device=device)
    count = torch.Size(shape).numel()
    flat = buffer.detach().reshape(-1)
    return flat.repeat(-(-count // flat.numel()))[:count].view(shape).to(dtype)


def alike_buffers(module: nn.Module, device: torch.device, say: Callable[[str], None]) -> AlikeBuffers:
    """Of ``module``, agreed on between all processes; collective."""
    alike = AlikeBuffers(module, largest(device), _gathered, say)
    alike.agree()
    return alike


def largest(device: torch.device) -> Largest:
    """The question to all processes, as one all-reduce."""

    def ask(numbers: list[int]) -> list[int]:
        votes = torch.tensor(numbers, dtype=torch.int64, device=device)
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        return votes.tolist()

    return ask


def any_rank(device: torch.device) -> Callable[[list[bool]], list[bool]]:
    """For every flag, whether it is set in any process; one all-reduce."""
    ask = largest(device)
    return lambda flags: [bool(vote) for vote in ask([int(flag) for flag in flags])]


def _gathered(mine: Any) -> list[Any]:
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    return found
