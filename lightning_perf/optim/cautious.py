"""The cautious mask: no component of an update moves against its own gradient."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor


def cautious_(updates: Iterable[Tensor], grads: Iterable[Tensor]) -> None:
    """Zero what is about to be subtracted wherever it and the gradient differ in sign, and scale the rest up, in place.

    With u the update and g the gradient: u = u · 1(u g > 0) · n / (count of u g > 0, at least 1 in 1000), n the number of
    elements, for each tensor.

    Source: "Cautious Optimizers", https://arxiv.org/abs/2411.16085. The floor of the count is the authors' code's; the
    paper adds 1 to it.

    Example::
        >>> import torch
        >>> update = torch.tensor([1.0, -1.0, 2.0, 4.0])
        >>> cautious_([update], [torch.tensor([1.0, 1.0, 1.0, -1.0])])
        >>> update
        tensor([2., -0., 4., 0.])
    """
    for update, grad in zip(updates, grads, strict=True):
        mask = (update * grad > 0).to(update.dtype)
        update.mul_(mask).div_(mask.mean().clamp_(min=1e-3))
