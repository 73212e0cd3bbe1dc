"""Batch norms folded into the layers before them: what becomes of integers, scales and biases.

A scale per output channel takes the factor of a batch norm up exactly: the integers of the folded weight are those of the
weight itself. So training rounds weights as they are and leaves the batch norm alone, and only evaluation and export fold.
Source: Krishnamoorthi 2018, https://arxiv.org/abs/1806.08342, section 3.2.2. Deviation: no correction terms are needed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_perf.quantization.kinds import NORMS

_TINY = torch.finfo(torch.float32).tiny


@torch.no_grad()
def factor_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """A batch norm in evaluation, ``factor * x + shift``, in float64.

    Example::

        >>> factor, shift = factor_and_shift(nn.BatchNorm1d(1, eps=0.0))
        >>> factor.item(), shift.item()
        (1.0, 0.0)
    """
    assert isinstance(norm, NORMS)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.affine:
        factor = factor * norm.weight.double()
    shift = -norm.running_mean.double() * factor
    return factor, shift + norm.bias.double() if norm.affine else shift


def scaled(rows: Tensor, scale: Tensor, factor: Tensor | None, axis: int) -> tuple[Tensor, Tensor]:
    """Integers and scales of a weight whose output channels are multiplied by ``factor``: signs move into the integers."""
    if factor is None:
        return rows, scale
    shape = [1] * scale.dim()
    shape[axis] = -1
    factor = factor.reshape(shape)
    return rows * factor.sign().to(rows.dtype), (scale * factor.abs()).float().clamp(min=_TINY)


def shifted(bias: Tensor | None, factor: Tensor, shift: Tensor, dtype: torch.dtype) -> Tensor:
    """The bias of a layer with the batch norm behind it folded in."""
    return (shift if bias is None else bias.detach().double() * factor + shift).to(dtype)
