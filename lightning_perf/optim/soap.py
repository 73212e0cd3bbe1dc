"""SOAP: Adam in the eigenbasis of Shampoo's preconditioners."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from lightning_perf.optim.adam_kernel import step_adamw
from lightning_perf.optim.blocks import loss_of, with_gradients
from lightning_perf.optim.cautious import cautious_
from lightning_perf.optim.checks import check_betas, check_number
from lightning_perf.optim.cost import note, soap_flops


class SOAP(Optimizer):
    """SOAP, from "SOAP: Improving and Stabilizing Shampoo using Adam"; for a matrix G of gradients::

        L = β2 L + (1 - β2) G Gᵀ;  R = β2 R + (1 - β2) Gᵀ G
        M = β1 M + (1 - β1) G;     V = β2 V + (1 - β2) (QLᵀ G QR)²
        θ = θ (1 - lr λ) - lr QL [ (QLᵀ M QR) / (1 - β1^t) / (√(V / (1 - β2^t)) + ε) ] QRᵀ
        every ``frequency`` steps:  QL = QR-decomposition(L QL).Q,  QR likewise from R

    Filters count as matrices of (outputs, rest). A side longer than ``max_dim`` gets no basis; what has fewer than two
    dimensions, or both sides too long, is stepped by AdamW. State: M, V and, per matrix of m x n, 2 (m² + n²) numbers.

    Deviations: the first bases are the eigenvectors for the first gradient, which is used for a step as well (the
    authors' code skips that one). Before a decomposition the columns are sorted by their eigenvalues, and V with them, as
    in that code: the iteration needs it to converge. Decompositions are computed in float32 at least.

    Args:
        params: Parameters or groups.
        lr: Learning rate.
        betas: β1; β2 of V, L and R.
        eps: ε.
        weight_decay: λ, decoupled.
        frequency: Steps between decompositions.
        max_dim: Longest side that gets a basis; the cost of a decomposition grows with its cube.
        cautious: Mask components that move against the gradient, see :mod:`lightning_perf.optim.cautious`.

    Raises:
        ValueError: a number out of its range.
        RuntimeError: a sparse gradient, in ``step``.

    Source: https://arxiv.org/abs/2409.11321

    Example::
        >>> weight = torch.nn.Parameter(torch.zeros(2, 2))
        >>> optimizer = SOAP([weight], lr=0.1)
        >>> weight.grad = torch.tensor([[0.0, -3.0], [2.0, 0.0]])
        >>> optimizer.step()
        >>> weight.data.round(decimals=4)
        tensor([[ 0.0000,  0.1000],
                [-0.1000,  0.0000]])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 3e-3,
        betas: tuple[float, float] = (0.95, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        frequency: int = 10,
        max_dim: int = 2048,
        cautious: bool = False,
    ) -> None:
        for what, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
            check_number(what, value)
        check_number("frequency", frequency, above_zero=True)
        check_number("max_dim", max_dim, above_zero=True)
        check_betas(betas, 2)
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "frequency": frequency, "max_dim": max_dim, "cautious": cautious})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step over all parameters that have a gradient."""
        loss = loss_of(closure)
        for group in self.param_groups:
            rest = []
            for parameter, gradient in with_gradients(self, group):
                if sides_with_basis(parameter, group["max_dim"]):
                    self._step_matrix(group, parameter, gradient)
                else:
                    rest.append((parameter, gradient))
            step_adamw(self, group, rest)
        return loss

    def cost_note(self) -> str:
        """From how many samples and positions per step on the rotations do not show beside the model's own work."""
        limit = self.defaults["max_dim"]
        found = [p for group in self.param_groups for p in group["params"] if sides_with_basis(p, limit)]
        shapes = [(p.size(0), p.numel() // p.size(0)) for p in found]
        flops = soap_flops(shapes, frequency=self.defaults["frequency"], max_dim=limit)
        return note("SOAP", flops, shapes)

    def _step_matrix(self, group: dict[str, Any], parameter: Tensor, gradient: Tensor) -> None:
        state, (beta1, beta2), lr = self.state[parameter], group["betas"], float(group["lr"])
        g = _matrix(gradient)
        sides = sides_with_basis(parameter, group["max_dim"])
        if not state:
            state.update(step=0, exp_avg=torch.zeros_like(g), exp_avg_sq=torch.zeros_like(g))
            for side in sides:
                state[f"factor_{side}"] = g.new_zeros(g.size(side), g.size(side))
        state["step"] += 1
        for side in sides:
            state[f"factor_{side}"].lerp_(g @ g.mT if side == 0 else g.mT @ g, 1 - beta2)
            if state["step"] == 1:
                state[f"basis_{side}"] = _eigenvectors(state[f"factor_{side}"])
        bases = {side: state[f"basis_{side}"] for side in sides}
        m, v = state["exp_avg"].lerp_(g, 1 - beta1), state["exp_avg_sq"]
        rotated = _rotate(g, bases)
        v.mul_(beta2).addcmul_(rotated, rotated, value=1 - beta2)
        roots = v.sqrt().div_(math.sqrt(1 - beta2 ** state["step"])).add_(group["eps"])
        update = _rotate_back(_rotate(m, bases).div_(roots), bases)
        if group["cautious"]:
            cautious_([update], [g])
        if group["weight_decay"]:
            parameter.mul_(1 - lr * group["weight_decay"])
        parameter.add_(update.view(parameter.shape), alpha=-lr / (1 - beta1 ** state["step"]))
        if state["step"] % group["frequency"] == 0:
            for side in sides:
                _refresh(state, side)


def sides_with_basis(parameter: Tensor, max_dim: int) -> list[int]:
    """Which sides of a parameter, seen as a matrix, get a basis: 0 for the rows, 1 for the columns.

    Example::
        >>> [sides_with_basis(torch.zeros(shape), 64) for shape in ((8, 3, 3, 3), (100, 8), (8,), (100, 100), (8, 1))]
        [[0, 1], [1], [], [], []]
    """
    if parameter.ndim < 2 or parameter.is_complex() or parameter.numel() == 0:
        return []
    shape = (parameter.size(0), parameter.numel() // parameter.size(0))
    return [side for side in (0, 1) if shape[side] <= max_dim] if min(shape) > 1 else []


def _matrix(tensor: Tensor) -> Tensor:
    return tensor.reshape(tensor.size(0), -1)


def _rotate(matrix: Tensor, bases: dict[int, Tensor]) -> Tensor:
    """QLᵀ X QR, in memory of its own."""
    if 0 in bases:
        matrix = bases[0].mT @ matrix
    return matrix @ bases[1] if 1 in bases else matrix


def _rotate_back(matrix: Tensor, bases: dict[int, Tensor]) -> Tensor:
    if 0 in bases:
        matrix = bases[0] @ matrix
    return matrix @ bases[1].mT if 1 in bases else matrix


def _eigenvectors(factor: Tensor) -> Tensor:
    """Orthonormal eigenvectors as columns, the largest eigenvalue first."""
    wide = factor.to(torch.promote_types(factor.dtype, torch.float32))
    return torch.linalg.eigh(wide).eigenvectors.flip(1).to(factor.dtype)


def _refresh(state: dict[str, Any], side: int) -> None:
    """One step of orthogonal iteration on a basis, its columns (and V) sorted by eigenvalue first."""
    factor, basis = state[f"factor_{side}"], state[f"basis_{side}"]
    wide = torch.promote_types(factor.dtype, torch.float32)
    product = factor.to(wide) @ basis.to(wide)
    order = (basis * product).sum(0).argsort(descending=True, stable=True)
    state[f"basis_{side}"] = torch.linalg.qr(product[:, order]).Q.to(basis.dtype)
    state["exp_avg_sq"] = state["exp_avg_sq"].index_select(side, order)
