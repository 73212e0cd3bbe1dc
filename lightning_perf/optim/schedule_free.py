"""Schedule-free AdamW and SGD: no learning-rate schedule and no horizon; the weights to evaluate are an average.

Defazio et al., "The Road Less Scheduled", https://arxiv.org/abs/2405.15682. Three points: the gradient is taken at y,
the plain optimizer moves z, and x, the weighted average of the z, is what one evaluates and ships::

    γ_t = lr · min(1, t / warmup_steps)
    z_t = z_{t-1} - γ_t (n_t + λ y_{t-1})        n_t = g_t for SGD;  g_t / (√(v_t / (1 - β2^t)) + ε) for AdamW
    c_t = w_t / (w_1 + ... + w_t)                w_t = t^r · max(γ_1, ..., γ_t)^2
    x_t = (1 - c_t) x_{t-1} + c_t z_t
    y_t = (1 - β1) z_t + β1 x_t                  (β1 is called momentum for SGD)

The parameter itself holds y, the state holds z, and x = y + (z - y)(1 - 1/β1) is not stored: evaluate with the weights
that ``evaluation_weights()`` yields. Batch-norm statistics are gathered at y and serve x well enough.

Deviations from the paper: the weights take the largest γ so far instead of the latest, as the authors' code does (the
same while γ rises; a falling schedule on top does not freeze the average); the bias correction stands under the root,
as in torch's Adam, instead of in γ. Deviation from the authors' code: t, the sum of the weights and the largest γ are
kept per parameter instead of per group, so that a parameter that starts late (thawed, or added) has its own warm-up,
its own bias correction and its own average. A warm-up may come from ``warmup_steps`` or from a scheduler of lr.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from lightning_perf.optim import foreach
from lightning_perf.optim.adam_kernel import adamw_
from lightning_perf.optim.blocks import in_blocks, loss_of, with_gradients
from lightning_perf.optim.checks import check_betas, check_number

_Members = list[tuple[Tensor, Tensor]]  # parameters with their gradients


class _ScheduleFree(Optimizer):
    """What both share: γ, the weights of the average, and the way from y to x and back."""

    def evaluation_weights(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Every parameter that has been stepped, with its averaged weights x as a new tensor; nothing is changed.

        x is computed in float32 at least. To evaluate, keep a copy of the parameter (it holds y), write x into it, and
        put the copy back before training goes on.

        Example::
            >>> weight = torch.nn.Parameter(torch.ones(1))
            >>> optimizer = ScheduleFreeSGD([weight], lr=0.5)
            >>> for _ in range(2):
            ...     weight.grad = torch.ones(1)
            ...     optimizer.step()
            >>> [(parameter.item(), round(x.item(), 4)) for parameter, x in optimizer.evaluation_weights()]
            [(0.22499999403953552, 0.25)]
        """
        for group in self.param_groups:
            beta = _beta(group)
            for parameter in group["params"]:
                state = self.state.get(parameter)
                if not state:
                    continue
                kind = torch.promote_types(parameter.dtype, torch.float32)
                with torch.no_grad():
                    y, z = parameter.detach().to(kind), state["z"].to(kind)
                    yield parameter, torch.lerp(y, z, 1 - 1 / beta)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step over all parameters that have a gradient."""
        loss = loss_of(closure)
        for group in self.param_groups:
            for (t, _, _), members in self._cohorts(group).items():
                self._step_together(group, members, t + 1)
        return loss

    def _cohorts(self, group: dict[str, Any]) -> dict[tuple[int, float, float], _Members]:
        """Parameters by what they share: number of steps, sum of weights, largest γ."""
        cohorts: dict[tuple[int, float, float], _Members] = {}
        for parameter, gradient in with_gradients(self, group):
            state = self.state[parameter]
            if not state:
                state.update(step=0, weight_sum=0.0, lr_max=0.0, **self._new_state(parameter))
            cohorts.setdefault((state["step"], state["weight_sum"], state["lr_max"]), []).append((parameter, gradient))
        return cohorts

    def _step_together(self, group: dict[str, Any], members: _Members, t: int) -> None:
        first = self.state[members[0][0]]
        lr = float(group["lr"]) * min(1.0, t / max(1, group["warmup_steps"]))
        lr_max = max(first["lr_max"], lr)
        weight = t ** group["r"] * lr_max**2
        weight_sum = first["weight_sum"] + weight
        for parameter, _ in members:
            self.state[parameter].update(step=t, weight_sum=weight_sum, lr_max=lr_max)
        share = weight / weight_sum if weight_sum else 0.0
        self._update(group, members, t=t, lr=lr, share=share)

    def _new_state(self, parameter: Tensor) -> dict[str, Tensor]:
        raise NotImplementedError

    def _update(self, group: dict[str, Any], members: _Members, *, t: int, lr: float, share: float) -> None:
        raise NotImplementedError


class ScheduleFreeAdamW(_ScheduleFree):
    """Schedule-free AdamW; formulas and deviations are those of the module's docstring.

    Weight decay acts at y. State: z and v, 8 bytes per parameter in float32. The step runs on torch's fused kernel of
    Adam: y is turned into x, the kernel moves z with β1 = 0, and x into the new y, so z and the second moment are those
    of the formulas to a rounding.

    Args:
        params: Parameters or groups.
        lr: Peak learning rate, 1 to 10 times that of a tuned AdamW with schedule.
        betas: β1 of the average in y, above 0; β2 of the second moment.
        eps: ε.
        weight_decay: λ.
        warmup_steps: Steps of linear warm-up.
        r: Exponent of t in the weights of the average; 0 as in the paper's experiments.

    Raises:
        ValueError: a number out of its range.
        RuntimeError: a sparse gradient, in ``step``.

    Source: https://arxiv.org/abs/2405.15682

    Example::
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = ScheduleFreeAdamW([weight], lr=0.1, weight_decay=0.0)
        >>> weight.grad = torch.tensor([2.0, -5.0])
        >>> optimizer.step()
        >>> weight.data
        tensor([0.9000, 1.1000])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 2.5e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        r: float = 0.0,
    ) -> None:
        for what, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay), ("warmup_steps", warmup_steps)):
            check_number(what, value)
        check_number("r", r)
        check_betas(betas, 2, above_zero=True)
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "warmup_steps": warmup_steps, "r": r})

    def _new_state(self, parameter: Tensor) -> dict[str, Tensor]:
        return {"z": parameter.detach().clone(), "exp_avg_sq": torch.zeros_like(parameter)}

    def _update(self, group: dict[str, Any], members: _Members, *, t: int, lr: float, share: float) -> None:
        (beta1, beta2), decay = group["betas"], group["weight_decay"]
        rows = [(p, g, self.state[p]["z"], self.state[p]["exp_avg_sq"]) for p, g in members]
        for (y, g, z, v), alike in in_blocks(rows):
            foreach.lerp_(y, z, 1 - 1 / beta1)
            x = y
            # λ y = λ (1 - β1) z + λ β1 x: the kernel decays by the first part.
            adamw_(
                z,
                g,
                g,
                v,
                step=t,
                lr=lr,
                betas=(0.0, beta2),
                eps=group["eps"],
                weight_decay=decay * (1 - beta1),
                alike=alike,
            )
            if decay:
                foreach.add_(z, x, alpha=-lr * decay * beta1)
            foreach.lerp_(y, z, 1 - beta1 * (1 - share))


class ScheduleFreeSGD(_ScheduleFree):
    """Schedule-free SGD; formulas and deviations are those of the module's docstring.

    Weight decay acts at y and is decoupled from nothing: for SGD it is an L2 penalty. State: z, 4 bytes per parameter
    in float32.

    Args:
        params: Parameters or groups.
        lr: Peak learning rate, 10 to 50 times that of SGD with momentum and schedule.
        momentum: β1 above.
        weight_decay: λ.
        warmup_steps: Steps of linear warm-up.
        r: Exponent of t in the weights of the average.

    Raises:
        ValueError: a number out of its range.
        RuntimeError: a sparse gradient, in ``step``.

    Source: https://arxiv.org/abs/2405.15682

    Example::
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = ScheduleFreeSGD([weight], lr=0.1)
        >>> weight.grad = torch.tensor([2.0, -5.0])
        >>> optimizer.step()
        >>> weight.data
        tensor([0.8000, 1.5000])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        r: float = 0.0,
    ) -> None:
        for what, value in (("lr", lr), ("weight_decay", weight_decay), ("warmup_steps", warmup_steps), ("r", r)):
            check_number(what, value)
        if not 0 < momentum < 1:
            raise ValueError(f"momentum={momentum!r} must lie in (0, 1), such as 0.9: x is found by dividing by it.")
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "warmup_steps": warmup_steps, "r": r})

    def _new_state(self, parameter: Tensor) -> dict[str, Tensor]:
        return {"z": parameter.detach().clone()}

    def _update(self, group: dict[str, Any], members: _Members, *, t: int, lr: float, share: float) -> None:
        beta, decay = group["momentum"], group["weight_decay"]
        rows = [(p, g, self.state[p]["z"]) for p, g in members]
        for (y, g, z), _ in in_blocks(rows):
            if decay:
                g = foreach.add(g, y, alpha=decay)
            foreach.lerp_(y, z, share)
            foreach.add_(y, g, alpha=lr * (beta * (1 - share) - 1))
            foreach.add_(z, g, alpha=-lr)


def _beta(group: dict[str, Any]) -> float:
    return group["betas"][0] if "betas" in group else group["momentum"]
