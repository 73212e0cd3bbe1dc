"""Bytes that an operator must move at least: its inputs and outputs, each read or written once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

# Operators that hand out memory without touching it, and those that read only what an index names.
_WITHOUT_TRAFFIC = {"aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty", "aten::lift_fresh"}
_LOOK_UPS = {"aten::embedding", "aten::index", "aten::index_select", "aten::gather", "aten::_embedding_bag"}


def bytes_moved(operator: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> int:
    """Sizes of the tensors that go into and come out of one call, in bytes; views and bare allocations move none.

    Caches and temporaries inside a kernel are not seen, so a real kernel moves at least this much unless its operands
    were still in a cache. A look-up reads as much of its table as it returns.

    Args:
        operator: the overload that was called.
        name: its name, such as ``aten::mm``.
        args: its positional arguments.
        kwargs: its keyword arguments.
        out: what it returned.

    Example::

        >>> a = torch.empty(3, 4)
        >>> bytes_moved(torch.ops.aten.mul.Tensor, "aten::mul", (a, a), {}, a * a)
        144
    """
    if _is_view(operator) or name in _WITHOUT_TRAFFIC:
        return 0
    outputs = sum(map(_size, tensors_in(out)))
    inputs = list(tensors_in((*args, *kwargs.values())))
    if name in _LOOK_UPS and inputs:
        return 2 * outputs + sum(map(_size, inputs[1:]))
    return outputs + sum(map(_size, inputs))


@cache
def _is_view(operator: Any) -> bool:
    return getattr(operator, "is_view", False)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in an operator's arguments or results, which nest in lists and tuples only."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for element in value:
            yield from tensors_in(element)


def _size(tensor: Tensor) -> int:
    """Bytes of the distinct elements: an expanded dimension is read once."""
    if tensor.is_nested or tensor.layout != torch.strided:
        return _size_of_parts(tensor)
    elements = 1
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        elements *= length if stride or not length else 1
    return int(elements) * tensor.element_size()


def _size_of_parts(tensor: Tensor) -> int:
    parts: Iterable[Tensor]
    if tensor.is_nested:
        parts = (tensor.values(),)
    elif tensor.layout == torch.sparse_coo:
        parts = (tensor._indices(), tensor._values())
    elif tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        parts = (tensor.crow_indices(), tensor.col_indices(), tensor.values())
    elif tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        parts = (tensor.ccol_indices(), tensor.row_indices(), tensor.values())
    else:  # oneDNN's own layout has no strides
        return tensor.numel() * tensor.element_size()
    return sum(part.numel() * part.element_size() for part in parts)
