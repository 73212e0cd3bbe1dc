"""Running statistics of batch norms for weights other than those they were gathered with."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def batch_norms(module: nn.Module) -> list[_BatchNorm]:
    """The batch norms of ``module`` that keep running statistics, in a fixed order."""
    found = (child for child in module.modules() if isinstance(child, _BatchNorm))
    return [child for child in found if child.running_mean is not None and child.running_var is not None]


def forget_statistics(module: nn.Module) -> None:
    """Make every batch norm in training mode gather its statistics anew, as the plain mean over what follows.

    Source: the recalibration of SWA, https://arxiv.org/abs/1803.05407.

    Example::
        >>> import torch
        >>> norm = nn.BatchNorm1d(1)
        >>> forget_statistics(norm)
        >>> _ = norm(torch.tensor([[0.0], [2.0]])), norm(torch.tensor([[4.0], [6.0]]))
        >>> norm.running_mean, norm.running_var
        (tensor([3.]), tensor([2.]))
    """
    for child in batch_norms(module):
        if child.training:
            child.reset_running_stats()
            child.momentum = None


def statistics_from(other: nn.Module, module: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """Every running mean and variance of ``module`` with that of ``other``, a copy of it that has seen batches.

    A batch norm that saw none, because nothing calls it, is left out.
    """
    for mine, theirs in zip(batch_norms(module), batch_norms(other), strict=True):
        if theirs.num_batches_tracked is None or theirs.num_batches_tracked > 0:
            for name in ("running_mean", "running_var"):
                yield getattr(mine, name), getattr(theirs, name)
