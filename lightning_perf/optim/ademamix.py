"""AdEMAMix: Adam with a second, much slower average of the gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from lightning_perf.optim import foreach
from lightning_perf.optim.blocks import in_blocks, loss_of, with_gradients
from lightning_perf.optim.cautious import cautious_
from lightning_perf.optim.checks import check_betas, check_number

_STATE = ("exp_avg", "exp_avg_slow", "exp_avg_sq")


class AdEMAMix(Optimizer):
    """AdEMAMix, from "The AdEMAMix Optimizer: Better, Faster, Older"::

        m1 = β1 m1 + (1 - β1) g;  m2 = β3(t) m2 + (1 - β3(t)) g;  v = β2 v + (1 - β2) g²
        θ = θ (1 - lr λ) - lr (m1 / (1 - β1^t) + α(t) m2) / (√(v / (1 - β2^t)) + ε)

    With ``ramp`` = T steps, α(t) rises linearly to α and β3(t) from β1 to β3 such that the half-life of the average rises
    linearly, as the paper advises for runs from scratch; without it both are constant. State: m1, m2, v, 12 bytes per
    parameter in float32. Deviation: t counts the steps of each parameter, so that one that starts late is corrected right.

    Args:
        params: Parameters or groups.
        lr: Learning rate.
        betas: β1, β2, β3.
        alpha: α.
        eps: ε.
        weight_decay: λ, decoupled.
        ramp: Steps over which α and β3 rise; the length of the run is right. None: constant.
        cautious: Mask components that move against the gradient, see :mod:`lightning_perf.optim.cautious`.

    Raises:
        ValueError: a number out of its range.
        RuntimeError: a sparse gradient, in ``step``.

    Source: https://arxiv.org/abs/2409.03137

    Example::
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = AdEMAMix([weight], lr=0.1, alpha=0.0)
        >>> weight.grad = torch.tensor([2.0, -5.0])
        >>> optimizer.step()
        >>> weight.data
        tensor([0.9000, 1.1000])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        alpha: float = 5.0,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        ramp: int | None = None,
        cautious: bool = False,
    ) -> None:
        for what, value in (("lr", lr), ("alpha", alpha), ("eps", eps), ("weight_decay", weight_decay)):
            check_number(what, value)
        check_betas(betas, 3)
        if ramp is not None:
            check_number("ramp", ramp, above_zero=True)
            check_betas(betas, 3, above_zero=True)
        defaults = {"lr": lr, "betas": betas, "alpha": alpha, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "ramp": ramp, "cautious": cautious})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step over all parameters that have a gradient."""
        loss = loss_of(closure)
        for group in self.param_groups:
            cohorts: dict[int, list[tuple[Tensor, ...]]] = {}
            for parameter, gradient in with_gradients(self, group):
                state = self.state[parameter]
                if not state:
                    state["step"] = 0
                    state.update({name: torch.zeros_like(parameter) for name in _STATE})
                state["step"] += 1
                cohorts.setdefault(state["step"], []).append((parameter, gradient, *(state[name] for name in _STATE)))
            for t, rows in cohorts.items():
                self._update(group, rows, t)
        return loss

    def _update(self, group: dict[str, Any], rows: list[tuple[Tensor, ...]], t: int) -> None:
        lr, (beta1, beta2, _) = float(group["lr"]), group["betas"]
        alpha, beta3 = _ramped(t, group)
        correction1, root2 = 1 - beta1**t, math.sqrt(1 - beta2**t)
        for (theta, g, m1, m2, v), _ in in_blocks(rows, whole=group["cautious"]):
            foreach.lerp_(m1, g, 1 - beta1)
            foreach.lerp_(m2, g, 1 - beta3)
            foreach.mul_(v, beta2)
            foreach.addcmul_(v, g, g, 1 - beta2)
            roots = foreach.sqrt(v)
            foreach.div_(roots, root2)
            foreach.add_(roots, group["eps"])
            u = foreach.add(m1, m2, alpha=alpha * correction1)  # (1 - β1^t) times the numerator
            if group["cautious"]:
                cautious_(u, g)
            if group["weight_decay"]:
                foreach.mul_(theta, 1 - lr * group["weight_decay"])
            foreach.addcdiv_(theta, u, roots, -lr / correction1)


def _ramped(t: int, group: dict[str, Any]) -> tuple[float, float]:
    """α(t) and β3(t)."""
    beta1, _, beta3 = group["betas"]
    if group["ramp"] is None or t >= group["ramp"]:
        return group["alpha"], beta3
    share = t / group["ramp"]
    low, high = math.log(beta1), math.log(beta3)
    return share * group["alpha"], min(beta3, math.exp(low * high / ((1 - share) * high + share * low)))
