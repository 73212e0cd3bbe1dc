"""Schedule-free SGD as the paper writes it (https://arxiv.org/abs/2405.15682), for tests of what goes around it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


class LiteralScheduleFreeSGD(torch.optim.Optimizer):
    """y = (1 - beta) z + beta x is trained, x is evaluated; z takes the steps, x is their mean."""

    def __init__(
        self, params: Any, lr: float = 0.05, beta: float = 0.9, weight_decay: float = 0.0, warmup_steps: int = 0
    ) -> None:
        super().__init__(params, {"lr": lr, "beta": beta, "weight_decay": weight_decay, "warmup_steps": warmup_steps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for y in group["params"]:
                if y.grad is None:
                    continue
                state = self.state[y]
                if not state:
                    state.update(z=y.clone(), k=torch.tensor(0.0))
                x = self._x(y, state["z"], group["beta"])
                state["k"] += 1
                rate = group["lr"] * min(1.0, float(state["k"]) / max(1, group["warmup_steps"]))
                state["z"].sub_(y.grad + group["weight_decay"] * y, alpha=rate)
                x = x + (state["z"] - x) / state["k"]
                y.copy_((1 - group["beta"]) * state["z"] + group["beta"] * x)
        return loss

    @staticmethod
    def _x(y: Tensor, z: Tensor, beta: float) -> Tensor:
        return (y - (1 - beta) * z) / beta

    @torch.no_grad()
    def evaluation_weights(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        for group in self.param_groups:
            for y in group["params"]:
                if y in self.state:
                    yield y, self._x(y, self.state[y]["z"], group["beta"])
