"""Lion: the sign of a moving average, with a second average for the next step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from lightning_perf.optim import foreach
from lightning_perf.optim.blocks import in_blocks, loss_of, with_gradients
from lightning_perf.optim.cautious import cautious_
from lightning_perf.optim.checks import check_betas, check_number


class Lion(Optimizer):
    """Lion, from "Symbolic Discovery of Optimization Algorithms"::

        u = sign(β1 m + (1 - β1) g)
        θ = θ (1 - lr λ) - lr u
        m = β2 m + (1 - β2) g

    Every component moves by lr, so lr is 3 to 10 times smaller than AdamW's and λ as many times larger. State: m, 4 bytes
    per parameter in float32. No deviation; where the average is exactly zero, the sign is zero.

    Args:
        params: Parameters or groups.
        lr: Learning rate.
        betas: β1 of the update, β2 of what is kept.
        weight_decay: λ, decoupled.
        cautious: Mask components that move against the gradient, see :mod:`lightning_perf.optim.cautious`.

    Raises:
        ValueError: a number out of its range.
        RuntimeError: a sparse gradient, in ``step``.

    Source: https://arxiv.org/abs/2302.06675

    Example::
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = Lion([weight], lr=0.1)
        >>> weight.grad = torch.tensor([2.0, -5.0])
        >>> optimizer.step()
        >>> weight.data
        tensor([0.9000, 1.1000])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 3e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        cautious: bool = False,
    ) -> None:
        check_number("lr", lr)
        check_number("weight_decay", weight_decay)
        check_betas(betas, 2)
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "cautious": cautious})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step over all parameters that have a gradient."""
        loss = loss_of(closure)
        for group in self.param_groups:
            (beta1, beta2), lr = group["betas"], float(group["lr"])
            rows = []
            for parameter, gradient in with_gradients(self, group):
                state = self.state[parameter]
                if not state:
                    state["exp_avg"] = torch.zeros_like(parameter)
                rows.append((parameter, gradient, state["exp_avg"]))
            for (theta, g, m), _ in in_blocks(rows, whole=group["cautious"]):
                u = foreach.lerp(m, g, 1 - beta1)
                foreach.sign_(u)
                if group["cautious"]:
                    cautious_(u, g)
                if group["weight_decay"]:
                    foreach.mul_(theta, 1 - lr * group["weight_decay"])
                foreach.add_(theta, u, alpha=-lr)
                foreach.lerp_(m, g, 1 - beta2)
        return loss
