"""Sharpness-aware minimization as a closure around a closure, for any optimizer.

It is no option of ``OptimizerFactory``: Lightning's closure is the whole of ``training_step``, backward, clipping and
their hooks, so running it twice per step logs every metric twice, draws other dropout masks, counts a batch twice in
metrics and batch norms, and under gradient accumulation adds the second gradient to those of the earlier batches. A
training loop of one's own, such as manual optimization, is free of all that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


def sam_closure(
    closure: Callable[[], Any],
    parameters: Iterable[Tensor],
    *,
    rho: float = 0.05,
    adaptive: bool = False,
    module: nn.Module | None = None,
) -> Callable[[], Any]:
    """Wrap ``closure`` so that the gradients it leaves are those of the sharpness-aware loss::

        e = rho g / ‖g‖;  gradients of the loss at θ + e, used at θ         adaptive: e = rho θ² g / ‖θ g‖

    The norm is taken over all parameters. θ is put back bit for bit, also when the closure raises.

    Args:
        closure: Computes a loss and adds its gradients; run twice per call.
        parameters: What is trained.
        rho: Radius of the neighbourhood; adaptive ones are about ten times larger.
        adaptive: ASAM: the neighbourhood scales with the parameters.
        module: If given, running statistics of its norms are those of the first run alone.

    Returns:
        A closure for ``optimizer.step``; its value is that of the first run, the loss at θ.

    Raises:
        ValueError: rho not above zero.

    Source: https://arxiv.org/abs/2010.01412, adaptive https://arxiv.org/abs/2102.11600 (without its η).

    Example::
        >>> weight = nn.Parameter(torch.tensor([3.0]))
        >>> optimizer = torch.optim.SGD([weight], lr=0.1)
        >>> def closure():
        ...     loss = weight.square().sum()
        ...     loss.backward()
        ...     return loss.item()
        >>> optimizer.step(sam_closure(closure, [weight], rho=0.5))
        9.0
        >>> weight.grad, weight.data
        (tensor([7.]), tensor([2.3000]))
    """
    if not rho > 0:
        raise ValueError(f"rho={rho!r} must be above 0, such as 0.05.")
    trained = list(parameters)

    def sharpness_aware() -> Any:
        for parameter in trained:
            parameter.grad = None
        value = closure()
        moved = [parameter for parameter in trained if parameter.grad is not None]
        before = [parameter.detach().clone() for parameter in moved]
        statistics = _running_statistics(module)
        try:
            _move(moved, rho, adaptive)
            for parameter in moved:
                parameter.grad = None
            closure()
        finally:
            with torch.no_grad():
                for parameter, old in zip(moved, before, strict=True):
                    parameter.copy_(old)
                for buffer, old in statistics:
                    buffer.copy_(old)
        return value

    return sharpness_aware


@torch.no_grad()
def _move(parameters: list[Tensor], rho: float, adaptive: bool) -> None:
    """θ + e; a gradient of exactly zero moves nothing."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    scaled = [p.abs() * g for p, g in zip(parameters, gradients, strict=True)] if adaptive else gradients
    if not scaled:
        return
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(each).to("cpu") for each in scaled]))
    if norm == 0:
        return
    for parameter, gradient in zip(parameters, scaled, strict=True):
        direction = parameter.abs() * gradient if adaptive else gradient
        parameter.add_(direction, alpha=rho / norm.item())


def _running_statistics(module: nn.Module | None) -> list[tuple[Tensor, Tensor]]:
    if module is None:
        return []
    norms = [each for each in module.modules() if isinstance(each, _NormBase)]
    return [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers(recurse=False)]
