"""Fake quantization: values rounded to those that a few bits can hold, with a gradient. Pure functions, float32 inside.

Rounding passes gradients straight through (Bengio et al. 2013, https://arxiv.org/abs/1308.3432); values outside of an
activation's range get none. Integers are those of Jacob et al. 2018, https://arxiv.org/abs/1712.05877: symmetric for
weights, asymmetric for activations, zero always exact.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_perf.quantization.schemes import Scheme
from lightning_perf.quantization.transforms import transformed

LOW, HIGH = 0, 255  # of an activation: uint8
FLOAT8 = torch.float8_e4m3fn
_LARGEST_FLOAT8 = 448.0
_TINY = torch.finfo(torch.float32).tiny * 1e3  # a scale whose reciprocal is still finite


class _Round(torch.autograd.Function):
    """``scale * clamp(round(x / scale))``, three vectorised passes in place.

    On a CPU torch's own ``fake_quantize_per_tensor_affine`` takes about ten times as long, and it keeps a mask; here the
    backward pass looks at the input, which is kept for the neighbouring layers anyway.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float, lowest: int, highest: int) -> Tensor:
        if x.requires_grad:
            ctx.save_for_backward(x)
            ctx.bounds = (lowest - 0.5) * scale, (highest + 0.5) * scale
        return (x * (1.0 / scale)).round_().clamp_(lowest, highest).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(gradients[0], x, *ctx.bounds), None, None, None


class _StraightThrough(torch.autograd.Function):
    """The rounded values forward, the gradient as it is backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rounded: Tensor) -> Tensor:
        return rounded

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def activation_parameters(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Scale (float32) and zero point (int32) of ranges, each widened to hold zero.

    Example::

        >>> scale, zero = activation_parameters(torch.tensor(-1.0), torch.tensor(1.55))
        >>> round(scale.item(), 4), zero.item()
        (0.01, 100)
    """
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    scale = ((high - low) / (HIGH - LOW)).clamp(min=_TINY)
    zero = (LOW - (low / scale).round()).clamp(LOW, HIGH)
    return scale, zero.to(torch.int32)


def round_activation(x: Tensor, scale: float | Tensor, zero: int | Tensor) -> Tensor:
    """``x`` rounded to 256 steps of ``scale``; numbers on a CPU, tensors on an accelerator, which then need not wait.

    Example::

        >>> round_activation(torch.tensor([0.34, 9.0]), 0.1, 0)
        tensor([0.3000, 9.0000])
    """
    wide = x if x.dtype == torch.float32 else x.float()
    if transformed():
        rounded = _round_by_operators(wide, scale, LOW - zero, HIGH - zero)
    elif isinstance(scale, Tensor) or isinstance(zero, Tensor):
        rounded = torch.fake_quantize_per_tensor_affine(wide, scale, zero, LOW, HIGH)  # pyright: ignore
    else:
        rounded = _Round.apply(wide, scale, LOW - zero, HIGH - zero)
    return rounded if x.dtype == torch.float32 else rounded.to(x.dtype)


def round_to_own_range(x: Tensor, scheme: Scheme) -> Tensor:
    """``x`` rounded as a dynamic scheme does it, in the range that it has itself."""
    if not x.numel():
        return x
    if scheme.number == "float8":
        wide = x.detach().float()
        scale = (wide.abs().amax() / _LARGEST_FLOAT8).clamp(min=_TINY)
        return _through(x, (wide / scale).to(FLOAT8).float() * scale)
    scale, zero = activation_parameters(*(end.float() for end in extent(x)))
    if x.device.type == "cpu" and not torch.compiler.is_compiling() and not transformed():
        return round_activation(x, scale.item(), int(zero.item()))
    return round_activation(x, scale, zero)


def round_weight(weight: Tensor, scheme: Scheme, axis: int = 0) -> Tensor:
    """``weight`` rounded, one scale per index of ``axis`` or per group of a row; all gradients pass.

    Example::

        >>> from lightning_perf.quantization.schemes import get_scheme
        >>> round_weight(torch.tensor([[1.27, 0.512], [0.0, 2.54]]), get_scheme("int8"))
        tensor([[1.2700, 0.5100],
                [0.0000, 2.5400]])
    """
    rows, scale = stored_weight(weight, scheme, axis)
    return _through(weight, rows.mul_(scale).view_as(weight))


def stored_weight(weight: Tensor, scheme: Scheme, axis: int = 0) -> tuple[Tensor, Tensor]:
    """What is stored of a weight, as float32, and the scale that it is multiplied by.

    Under groups it is (out, in / group, group), otherwise of the shape of the weight.
    """
    wide = weight.detach().float()
    scale = weight_scale(wide, scheme, axis)
    if scheme.group is not None:
        wide = wide.unflatten(1, (-1, scheme.group))
    if scheme.number == "float8":
        return (wide / scale).to(FLOAT8).float(), scale
    return (wide * (1.0 / scale)).round_(), scale


def weight_scale(weight: Tensor, scheme: Scheme, axis: int = 0) -> Tensor:
    """Scale of every output channel, or of every group, with as many dimensions as it takes to broadcast.

    The largest magnitude is the largest integer, so that nothing is clipped and a zero stays zero. Groups of a weight
    (out, in) give (out, in / group, 1).
    """
    largest = _LARGEST_FLOAT8 if scheme.number == "float8" else float(scheme.largest)
    magnitudes = weight.detach().float().abs()
    if scheme.group is not None:
        return (magnitudes.unflatten(1, (-1, scheme.group)).amax(2, keepdim=True) / largest).clamp(min=_TINY)
    others = [dim for dim in range(weight.dim()) if dim != axis]
    return (magnitudes.amax(others, keepdim=True) / largest).clamp(min=_TINY)


def extent(x: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest value, read in the order in which they lie in memory."""
    x = x.detach()
    if transformed():
        return x.amin(), x.amax()
    if not x.is_contiguous():
        x = x.permute(sorted(range(x.dim()), key=x.stride, reverse=True))
    return torch.aminmax(x)


def _round_by_operators(x: Tensor, scale: float | Tensor, lowest: int | Tensor, highest: int | Tensor) -> Tensor:
    """What :class:`_Round` computes, and its gradient, of operators that ``torch.func`` knows to transform."""
    inside = torch.clamp(x, (lowest - 0.5) * scale, (highest + 0.5) * scale)  # pyright: ignore
    rounded = torch.clamp((x.detach() * (1.0 / scale)).round(), lowest, highest) * scale  # pyright: ignore
    return rounded + (inside - inside.detach())


def _through(x: Tensor, rounded: Tensor) -> Tensor:
    if transformed():
        return rounded.to(x.dtype) + (x - x.detach())
    return _StraightThrough.apply(x, rounded.to(x.dtype))  # pyright: ignore[reportReturnType]
