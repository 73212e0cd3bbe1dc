"""One pass over a model's parameters in blocks that fit a CPU's cache: what the optimizers of our own share.

An elementwise step reads and writes parameter, gradient and state several times. Done tensor by tensor, each of these
passes goes to memory; done block by block, only the first does. Small tensors are gathered into a block, so that one
call of a ``torch._foreach_`` function serves them all; large ones are cut into slices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

# Elements of a block. On a CPU a block is to stay in cache, yet be large enough that the calls cost little beside the
# arithmetic: 2^16 to 2^18 measured the same, 2^15 and 2^20 slower. Elsewhere foreach functions are single kernels, and a
# block only bounds their temporaries.
_CPU_BLOCK = 131072
_DEVICE_BLOCK = 1 << 26
_PLAIN = (Tensor, nn.Parameter)


class Block(NamedTuple):
    """Aligned lists of tensors, one list per column of the rows, all of one device and dtype.

    ``alike`` tells that the tensors of each row fill their memory in one and the same order, as kernels need that walk
    through them as flat memory.
    """

    columns: tuple[list[Tensor], ...]
    alike: bool


def loss_of(closure: Callable[[], Any] | None) -> Any:
    """The loss of a closure, evaluated once with gradients switched on; None without a closure."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def with_gradients(optimizer: Optimizer, group: dict[str, Any]) -> list[tuple[Tensor, Tensor]]:
    """The parameters of ``group`` that have a gradient, each with it.

    Raises:
        RuntimeError: a gradient is sparse.
    """
    found = []
    for parameter in group["params"]:
        gradient = parameter.grad
        if gradient is None:
            continue
        if gradient.layout is not torch.strided:
            raise RuntimeError(
                f"{type(optimizer).__name__} got a sparse gradient for a parameter of shape {tuple(parameter.shape)} and "
                "has no sparse step; build the embedding with sparse=False, or use 'sgd', 'adagrad' or 'sparse_adam'."
            )
        found.append((parameter, gradient))
    return found


def in_blocks(rows: Iterable[Sequence[Tensor]], *, whole: bool = False, size: int | None = None) -> Iterator[Block]:
    """Serve rows of equally shaped tensors, such as (parameter, gradient, state), in blocks.

    Args:
        rows: Rows of equal length. Complex tensors are served as real ones. The tensors of the blocks are views of
            those of the rows, so what is written in place lands there.
        whole: Never cut a tensor, for updates that need a mean over all of it.
        size: Elements of a block; default: by device.

    Example::
        >>> rows = [(torch.zeros(5), torch.ones(5)), (torch.zeros(2), torch.ones(2)), (torch.zeros(2), torch.ones(2))]
        >>> [[tuple(t.shape) for t in block.columns[0]] for block in in_blocks(rows, size=4)]
        [[(4,)], [(1,)], [(2,), (2,)]]
    """
    gathered: list[Sequence[Tensor]] = []
    filled, kind = 0, None
    for row in rows:
        first = row[0]
        if first.is_complex():
            row = [torch.view_as_real(tensor.resolve_conj()) for tensor in row]
            first = row[0]
        limit = size or (_CPU_BLOCK if first.device.type == "cpu" else _DEVICE_BLOCK)
        count = first.numel()
        stride = first.stride()
        alike = type(first) in _PLAIN and all(t.stride() == stride for t in row) and fills_its_memory(first)
        if not alike:
            yield Block(tuple([tensor] for tensor in row), alike=False)
        elif count > limit and not whole:
            slices = [_flat(tensor).split(limit) for tensor in row]
            for part in zip(*slices, strict=True):
                yield Block(tuple([tensor] for tensor in part), alike=True)
        else:
            if gathered and (filled + count > limit or kind != (first.device, first.dtype)):
                yield _gathered(gathered)
                gathered, filled = [], 0
            gathered.append(row)
            filled += count
            kind = (first.device, first.dtype)
    if gathered:
        yield _gathered(gathered)


def fills_its_memory(tensor: Tensor) -> bool:
    """Whether the elements of ``tensor`` lie in memory without gaps or overlaps, in whatever order of dimensions.

    Example::
        >>> image = torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last)
        >>> fills_its_memory(image), fills_its_memory(image[:, :2])
        (True, False)
    """
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def _flat(tensor: Tensor) -> Tensor:
    if tensor.is_contiguous():
        return tensor.view(-1)
    return tensor.as_strided((tensor.numel(),), (1,), tensor.storage_offset())


def _gathered(rows: list[Sequence[Tensor]]) -> Block:
    return Block(tuple(list(column) for column in zip(*rows, strict=True)), alike=True)
