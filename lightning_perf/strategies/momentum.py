"""The momentum of all processes, averaged with their weights; it travels in a byte a number, or two among many processes.

In a byte means float8, whose rounding is relative to each number: beside a frequent row of an embedding a rare one, which
Adam divides by as little as it is itself, would drown in the rounding of int8.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from lightning_perf.strategies.compression import BLOCK, padded, travels_as

#: The first moment of torch's optimizers and of those of the house.
_NAMES = ("exp_avg", "momentum_buffer")
_MOST_NUMBERS = 8 * 1024 * 1024
#: The largest number of float8 e4m3.
_LARGEST = 448.0
#: Not the user's, and none of those of exchanged gradients.
_TAG = 1 << 29


def keeps_momentum(group: Mapping[str, Any]) -> bool:
    """Whether an optimizer's group has a first moment, told by its options: they are the same in every process.

    Example::

        >>> keeps_momentum({"lr": 0.1, "momentum": 0.9}), keeps_momentum({"betas": (0.9, 0.999)}), keeps_momentum({"lr": 1})
        (True, True, False)
    """
    betas = group.get("betas")
    return bool(group.get("momentum")) or (isinstance(betas, Sequence) and bool(betas) and bool(betas[0]))


def to_bytes(numbers: Tensor) -> Tensor:
    """A float32 scale for every 256 numbers, then a float8 (e4m3) for each: within a sixteenth of itself.

    Numbers below 1/28,672 of the largest of their 256 go by steps of 1/229,376 of it.

    Example::

        >>> to_bytes(torch.zeros(512)).numel()
        520
    """
    blocks = numbers.view(-1, BLOCK)
    scales = blocks.abs().amax(1) / _LARGEST
    codes = (blocks * torch.where(scales > 0, 1 / scales, 0.0)[:, None]).to(torch.float8_e4m3fn)
    return torch.cat([scales.view(torch.uint8), codes.view(torch.uint8).view(-1)])


def from_bytes(message: Tensor) -> Tensor:
    """The numbers that :func:`to_bytes` made it of, rounded.

    Example::

        >>> from_bytes(to_bytes(torch.full((256,), 3.0)))[0].item()
        3.0
    """
    split = 4 * (message.numel() // (BLOCK + 4))
    codes = message[split:].view(torch.float8_e4m3fn).view(-1, BLOCK)
    return (codes.float() * message[:split].view(torch.float32)[:, None]).view(-1)


class Momenta:
    """Averages the momentum of optimizers over all processes, in two halves, so that it travels beside something else.

    Every process sends a number for every parameter of a group with momentum, zero where it has no state of it: so all send
    the same, whatever they have stepped. What rounding takes from a process's numbers stays with it: its momentum becomes
    the mean of what was sent plus that, so that the mean over processes is that of unrounded numbers. But it stays within
    what the process's own second moment admits: Adam divides by that, and where a process has seen no gradient (rows of an
    embedding, units that rest) it is nothing. State in other coordinates than the weights' (SOAP's) stays its own.

    Args:
        optimizers: all optimizers of the run.
        device: that of the process, from which tensors travel.
    """

    def __init__(self, optimizers: Iterable[Optimizer], device: torch.device) -> None:
        self._device = device
        self._chunks: list[list[tuple[Tensor, Tensor | None]]] = [[]]
        self._held: list[tuple[Tensor, Mapping[str, Any], Mapping[str, Any]]] = []
        size = 0
        for optimizer in optimizers:
            for parameter, group in _with_momentum(optimizer):
                if self._chunks[-1] and size + parameter.numel() > _MOST_NUMBERS:
                    self._chunks.append([])
                    size = 0
                state = optimizer.state.get(parameter, {})
                moment = _first_moment(parameter, state)
                self._chunks[-1].append((parameter, moment))
                if moment is not None:
                    self._held.append((moment, state, group))
                size += parameter.numel()
        self._ends: list[Callable[[], list[Tensor]]] = []

    @torch.no_grad()
    def send(self) -> None:
        """Start to send what this process has; collective."""
        for chunk in filter(None, self._chunks):
            numbers = torch.zeros(sum(padded(parameter.numel()) for parameter, _ in chunk), device=self._device)
            for (_, moment), part in zip(chunk, _parts(numbers, chunk), strict=True):
                if moment is not None:
                    part.copy_(moment.reshape(-1))
            self._ends.append(_sent(numbers, chunk))

    @torch.no_grad()
    def receive(self) -> None:
        """Wait, and move what this process has to the mean; collective."""
        for chunk, end in zip(filter(None, self._chunks), self._ends, strict=True):
            for (_, moment), move in zip(chunk, end(), strict=True):
                if moment is not None:
                    moment += move.view(moment.shape).to(moment.device)
        for moment, state, group in self._held:
            limit = _limit(state, group)
            if limit is not None:
                torch.clamp(moment, -limit, limit, out=moment)
        self._ends = []


def _with_momentum(optimizer: Optimizer) -> list[tuple[Tensor, dict[str, Any]]]:
    groups = [group for group in optimizer.param_groups if keeps_momentum(group)]
    return [(p, group) for group in groups for p in group["params"] if p.is_floating_point()]


def _limit(state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor | None:
    """The largest first moment, by the same gradients as the second: for Adam's by the inequality of Cauchy and Schwarz."""
    if "betas" not in group or not ("exp_avg_sq" in state or "exp_inf" in state):
        return None
    first, second = (float(beta) for beta in group["betas"][:2])
    if "exp_inf" in state:
        return state["exp_inf"] * ((1 - first) / (1 - first / second)) if first < second else None
    if not first**2 < second < 1:
        return None
    return state["exp_avg_sq"].sqrt() * ((1 - first) / math.sqrt((1 - second) * (1 - first**2 / second)))


def _first_moment(parameter: Tensor, state: Mapping[str, Any]) -> Tensor | None:
    """What has an entry for every weight; not beside factors or bases, in whose coordinates it may be."""
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor) and value.ndim}
    if any(value.shape != parameter.shape for value in tensors.values()):
        return None
    return next((tensors[name] for name in _NAMES if name in tensors), None)


def _parts(numbers: Tensor, chunk: Sequence[tuple[Tensor, Any]]) -> list[Tensor]:
    """Each parameter's numbers, without what pads them to whole blocks."""
    split = numbers.split([padded(parameter.numel()) for parameter, _ in chunk])
    return [part[: parameter.numel()] for part, (parameter, _) in zip(split, chunk, strict=True)]


def _sent(numbers: Tensor, chunk: Sequence[tuple[Tensor, Any]]) -> Callable[[], list[Tensor]]:
    """Send them; what is returned waits for those of the others, and gives the mean less what was sent, by parameter."""
    world = dist.get_world_size()
    if travels_as("int8", world) == "int8":
        message = to_bytes(numbers)
        rows = [torch.empty_like(message) for _ in range(world)]
        works = _swapped(message, rows) if numbers.device.type == "cpu" else _gathered(message, rows)

        def decoded() -> list[Tensor]:
            for work in works:
                work.wait()
            sent = [from_bytes(row) for row in rows]
            total: Any = sum(sent)
            return _parts(total / world - sent[dist.get_rank()], chunk)

        return decoded
    half = (numbers / world).to(torch.bfloat16)
    own = half.float() * world
    sum_: Any = dist.all_reduce(half, async_op=True)

    def added() -> list[Tensor]:
        sum_.wait()
        return _parts(half - own, chunk)

    return added


def _swapped(message: Tensor, rows: list[Tensor]) -> list[Any]:
    """Straight from process to process: in an all-gather of gloo the two directions of a link may take turns."""
    own = dist.get_rank()
    rows[own] = message
    others = [rank for rank in range(len(rows)) if rank != own]
    receives = [dist.irecv(rows[rank], rank, tag=_TAG) for rank in others]
    return receives + [dist.isend(message, rank, tag=_TAG) for rank in others]


def _gathered(message: Tensor, rows: list[Tensor]) -> list[Any]:
    return [dist.all_gather(rows, message, async_op=True)]
