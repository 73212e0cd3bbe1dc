"""Adam's step on lists of tensors: torch's fused kernel where there is one, operation by operation elsewhere."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_perf.optim import foreach
from lightning_perf.optim.blocks import in_blocks
from lightning_perf.optim.foreach import Tensors
from lightning_perf.optim.fusable import device_has_kernel

_WHOLE = 1 << 26  # the fused kernel passes over memory once anyway


def adamw_(
    params: Tensors,
    grads: Tensors,
    exp_avgs: Tensors,
    exp_avg_sqs: Tensors,
    *,
    step: float,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    alike: bool,
) -> None:
    """One step of AdamW in place, with torch's formulas::

        θ = θ (1 - lr λ);  m = β1 m + (1 - β1) g;  v = β2 v + (1 - β2) g²
        θ = θ - lr / (1 - β1^t) · m / (√v / √(1 - β2^t) + ε)

    Args:
        params: Parameters of one device and dtype.
        grads: Their gradients.
        exp_avgs: First moments. For β1 = 0 the gradients themselves may stand here; they are not changed then.
        exp_avg_sqs: Second moments.
        step: Number of this step, from 1; infinity leaves the bias correction out.
        lr: Learning rate.
        betas: β1 and β2.
        eps: ε.
        weight_decay: λ.
        alike: Whether all tensors of a row lie alike in memory; only then is the fused kernel right.

    Example::
        >>> theta, m, v = torch.ones(2), torch.zeros(2), torch.zeros(2)
        >>> settings = {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "alike": True}
        >>> adamw_([theta], [torch.tensor([3.0, -3.0])], [m], [v], step=1, **settings)
        >>> theta
        tensor([0.9000, 1.1000])
    """
    device = params[0].device
    if alike and _has_kernel(device.type):
        steps = [torch.full((), float(step), device=device)] * len(params)
        foreach.fused_adamw_(
            params,
            grads,
            exp_avgs,
            exp_avg_sqs,
            [],
            steps,
            lr=lr,
            beta1=betas[0],
            beta2=betas[1],
            weight_decay=weight_decay,
            eps=eps,
            amsgrad=False,
            maximize=False,
        )
        return
    if weight_decay:
        foreach.mul_(params, 1 - lr * weight_decay)
    if betas[0]:
        foreach.lerp_(exp_avgs, grads, 1 - betas[0])
    foreach.mul_(exp_avg_sqs, betas[1])
    foreach.addcmul_(exp_avg_sqs, grads, grads, 1 - betas[1])
    roots = foreach.sqrt(exp_avg_sqs)
    foreach.div_(roots, math.sqrt(1 - betas[1] ** step))
    foreach.add_(roots, eps)
    foreach.addcdiv_(params, exp_avgs if betas[0] else grads, roots, -lr / (1 - betas[0] ** step))


def step_adamw(optimizer: Optimizer, group: dict[str, Any], members: Iterable[tuple[Tensor, Tensor]]) -> None:
    """AdamW's step for the parameters of ``group`` that another algorithm leaves to it.

    Args:
        optimizer: Its state holds ``step``, ``exp_avg`` and ``exp_avg_sq`` of each parameter.
        group: With ``lr``, ``betas``, ``eps`` and ``weight_decay``.
        members: Parameters with their gradients.
    """
    cohorts: dict[int, list[tuple[Tensor, ...]]] = {}
    for parameter, gradient in members:
        state = optimizer.state[parameter]
        if not state:
            state.update(step=0, exp_avg=torch.zeros_like(parameter), exp_avg_sq=torch.zeros_like(parameter))
        state["step"] += 1
        cohorts.setdefault(state["step"], []).append((parameter, gradient, state["exp_avg"], state["exp_avg_sq"]))
    settings = {name: group[name] for name in ("betas", "eps", "weight_decay")}
    for step, rows in cohorts.items():
        for columns, alike in in_blocks(rows, size=_WHOLE):
            adamw_(*columns, step=step, lr=float(group["lr"]), alike=alike, **settings)


@functools.cache
def _has_kernel(device: str) -> bool:
    return device_has_kernel(device, "_fused_adamw_")
