"""Layers under ``torch.func``: where a transform (grad, vmap, jvp, ...) is under way, tensors are wrapped.

The names of torch's that tell stand here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor  # pyright: ignore[reportMissingModuleSource]
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack


def transformed() -> bool:
    """Whether a transform of ``torch.func`` is under way; while Dynamo traces, it sees to them itself.

    Example::

        >>> seen = []
        >>> _ = torch.func.grad(lambda x: (seen.append(transformed()), x)[1])(torch.tensor(1.0))
        >>> seen, transformed()
        ([True], False)
    """
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


@contextmanager
def outside(x: Tensor) -> Iterator[Tensor]:
    """All values of a tensor, with every dimension that is mapped over, for a block to which no transform applies.

    Example::

        >>> def largest(row):
        ...     with outside(row) as rows:
        ...         seen.append(rows.max().item())
        ...     return row
        >>> seen = []
        >>> _ = torch.func.vmap(largest)(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        >>> seen
        [4.0]
    """
    x = x.detach()
    while is_functorch_wrapped_tensor(x):
        x = get_unwrapped(x)
    with temporarily_clear_interpreter_stack():
        yield x
