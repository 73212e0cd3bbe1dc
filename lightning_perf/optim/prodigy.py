"""Prodigy: Adam that estimates its own learning rate from how far it has come."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from lightning_perf.optim import foreach
from lightning_perf.optim.adam_kernel import adamw_
from lightning_perf.optim.blocks import in_blocks, loss_of, with_gradients
from lightning_perf.optim.checks import check_betas, check_number

_STATE = ("exp_avg", "exp_avg_sq", "s", "initial")


class Prodigy(Optimizer):
    """Prodigy, Adam version, from "Prodigy: An Expeditiously Adaptive Parameter-Free Learner"::

        r = √β2 r + (1 - √β2) γ d² <g, θ0 - θ>
        s = √β2 s + (1 - √β2) γ d² g
        m = β1 m + (1 - β1) d g;  v = β2 v + (1 - β2) d² g²
        θ = θ (1 - γ d λ) - γ d m / (√v + d ε)
        d = max(d, c r / ||s||_1)                     (r, d and the norm are sums over all parameters)

    Leave lr (γ) at 1: d is the learning rate, and a scheduler scales γ. State: m, v, s, θ0, 16 bytes per parameter in
    float32; d and r stand in the groups, the same in each.

    Deviations: r and s are kept divided by (1 - √β2) d0², which keeps them in float32's range. Groups of
    different lr, which that code refuses, are the change of variables θ = a θ' with a = lr / (largest lr), in which the
    formulas are those above: r takes the largest lr, s the group's own. d in the denominator is that of the step, as in
    the paper (the code has the next one). ``bias_correction`` multiplies γ by √(1 - β2^k) / (1 - β1^k), as the code does.

    Args:
        params: Parameters or groups.
        lr: γ.
        betas: β1, β2.
        eps: ε.
        weight_decay: λ, decoupled.
        d0: First d; any small number.
        d_coef: c; 0.5 to 2 makes the estimate smaller or larger.
        growth_rate: Largest growth of d in one step.
        bias_correction: As in Adam.
        safeguard_warmup: Keep γ out of s, for a warm-up that starts from nearly zero.

    Raises:
        ValueError: a number out of its range.
        RuntimeError: a sparse gradient, in ``step``.

    Source: https://arxiv.org/abs/2306.06101

    Example::
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = Prodigy([weight], d0=1e-3)
        >>> for _ in range(50):
        ...     weight.grad = weight.detach() - 3.0
        ...     optimizer.step()
        >>> bool(optimizer.param_groups[0]["d"] > 0.1)
        True
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        d0: float = 1e-6,
        d_coef: float = 1.0,
        growth_rate: float = math.inf,
        bias_correction: bool = False,
        safeguard_warmup: bool = False,
    ) -> None:
        for what, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
            check_number(what, value)
        check_number("d0", d0, above_zero=True)
        check_number("d_coef", d_coef, above_zero=True)
        if not growth_rate > 1:
            raise ValueError(f"growth_rate={growth_rate!r} must be above 1, such as 1.02; math.inf sets no limit.")
        check_betas(betas, 2)
        defaults: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "d0": d0}
        defaults |= {"d_coef": d_coef, "growth_rate": growth_rate, "bias_correction": bias_correction}
        super().__init__(params, {**defaults, "safeguard_warmup": safeguard_warmup, "d": d0, "r": 0.0, "k": 0})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step over all parameters that have a gradient, and one of d."""
        loss = loss_of(closure)
        shared = self.param_groups[0]  # a group that was added later has the d of its first day
        largest = max(float(group["lr"]) for group in self.param_groups)
        if largest == 0:
            return loss
        d, k = shared["d"], shared["k"]
        products: list[Tensor] = []
        norms: list[Tensor] = []
        for group in self.param_groups:
            self._update(group, d, k, products, norms)
        if not norms:
            return loss
        beta2 = shared["betas"][1]
        r = math.sqrt(beta2) * shared["r"]
        r += (d / shared["d0"]) ** 2 * largest * _correction(shared, k) * sum(float(product) for product in products)
        norm = sum(float(each) for each in norms)
        if norm > 0:
            d = max(d, min(shared["d_coef"] * r / norm, d * shared["growth_rate"]))
        for group in self.param_groups:
            group.update(d=d, r=r, k=k + 1)
        return loss

    def _update(self, group: dict[str, Any], d: float, k: int, products: list[Tensor], norms: list[Tensor]) -> None:
        beta2 = group["betas"][1]
        lr = float(group["lr"]) * _correction(group, k)
        share = (d / group["d0"]) ** 2 * (1.0 if group["safeguard_warmup"] else lr)
        rows = []
        for parameter, gradient in with_gradients(self, group):
            state = self.state[parameter]
            if not state:
                state.update({name: torch.zeros_like(parameter) for name in _STATE[:3]})
                state["initial"] = parameter.detach().clone()
            rows.append((parameter, gradient, *(state[name] for name in _STATE)))
        for (theta, g, m, v, s, initial), alike in in_blocks(rows):
            scratch = foreach.sub(initial, theta)
            foreach.mul_(scratch, g)
            products.append(_sum(scratch))
            foreach.mul_(s, math.sqrt(beta2))
            foreach.add_(s, g, alpha=share)
            foreach.copy_(scratch, s)
            foreach.abs_(scratch)  # on a CPU a quarter of the time of a norm
            norms.append(_sum(scratch))
            foreach.copy_(scratch, g)
            foreach.mul_(scratch, d)
            adamw_(
                theta,
                scratch,
                m,
                v,
                step=math.inf,  # no bias correction
                lr=lr * d,
                betas=group["betas"],
                eps=d * group["eps"],
                weight_decay=group["weight_decay"],
                alike=alike,
            )


def _sum(tensors: Iterable[Tensor]) -> Tensor:
    return torch.stack([tensor.sum() for tensor in tensors]).sum()


def _correction(group: dict[str, Any], k: int) -> float:
    if not group["bias_correction"]:
        return 1.0
    beta1, beta2 = group["betas"]
    return math.sqrt(1 - beta2 ** (k + 1)) / (1 - beta1 ** (k + 1))
