"""Copies of modules in use: what a forward pass has left on them, with its graph, does not stop the copy."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor
from torch.overrides import TorchFunctionMode

Value = TypeVar("Value")


def deep_copy(value: Value, memo: dict[int, Any] | None = None) -> Value:
    """``copy.deepcopy``, in which a tensor with a graph becomes a detached clone, wherever in ``value`` it is kept.

    ``copy.deepcopy`` raises at such a tensor: attention maps or losses that a module keeps as attributes, the ``weight``
    of ``nn.utils.weight_norm``. The graph leads to the original's parameters, so a copy has no use for it.

    Args:
        value: a module, mostly.
        memo: of ``copy.deepcopy``; what is copied with the same one holds together.

    Example::

        >>> import torch
        >>> net = torch.nn.Linear(2, 1)
        >>> net.maps = [net.weight * 2]
        >>> deep_copy(net).maps[0].requires_grad, torch.equal(deep_copy(net).maps[0], net.maps[0])
        (False, True)
    """
    with _Detaching():
        return copy.deepcopy(value, memo)


class _Detaching(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            return args[0].detach().clone()
        return func(*args, **(kwargs or {}))
