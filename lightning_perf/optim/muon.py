"""Muon for matrices and AdamW for everything else, as one optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from lightning_perf.optim import foreach
from lightning_perf.optim.adam_kernel import step_adamw
from lightning_perf.optim.blocks import loss_of, with_gradients
from lightning_perf.optim.checks import check_betas, check_number
from lightning_perf.optim.cost import muon_flops, note
from lightning_perf.optim.newton_schulz import orthogonalize

_ADJUSTMENTS: dict[str, Callable[[int, int], float]] = {
    "match_rms_adamw": lambda rows, cols: 0.2 * math.sqrt(max(rows, cols)),
    "original": lambda rows, cols: math.sqrt(max(1.0, rows / cols)),
}


class Muon(Optimizer):
    """Muon, and AdamW for the parameters that are no hidden matrices::

        b = μ b + (1 - μ) g;  u = (1 - μ) g + μ b with nesterov, else b
        θ = θ (1 - lr λ) - lr · a · NS(u)      a = 0.2 √max(rows, columns), or √max(1, rows / columns)

    NS is the Newton-Schulz iteration. With the first a ("match_rms_adamw", the default) an update is as large as one of
    AdamW, so that one learning rate and one decay serve both kinds. Filters count as matrices of (outputs, rest). There
    is no inner optimizer: groups, state and learning rates are this optimizer's own, so schedulers, ``state_dict`` and
    ``add_param_group`` work as for any other. State: b, 4 bytes per parameter in float32; 8 under AdamW.

    A group's ``matrices`` tells for each of its parameters how many matrices it holds, stacked along its rows: 0 for
    AdamW, 1 for Muon, 3 for a packed projection of query, key and value, which are orthogonalized one by one.
    :func:`lightning_perf.optim.muon_groups.muon_groups` fills it in from a module; without it, Muon takes what has two
    or more dimensions, embeddings and heads included.

    Deviations: momentum as a moving average, as in torch.optim.Muon (Newton-Schulz does not see the scale); batching and
    precision as in :mod:`lightning_perf.optim.newton_schulz`.

    Args:
        params: Parameters or groups.
        lr: Learning rate of both kinds.
        weight_decay: λ, decoupled, of both.
        momentum: μ.
        nesterov: Whether u looks ahead.
        ns_steps: Newton-Schulz iterations.
        adjust_lr_fn: a: "match_rms_adamw" or "original".
        betas: β1, β2 of AdamW.
        eps: ε of AdamW.
        matrices: One number for all parameters of the groups that have none of their own.

    Raises:
        ValueError: a number out of its range; ``matrices`` that do not fit a parameter.
        RuntimeError: a sparse gradient, in ``step``.

    Source: https://kellerjordan.github.io/posts/muon/; "Muon is Scalable for LLM Training",
    https://arxiv.org/abs/2502.16982, for a and the decay.

    Example::
        >>> layer = torch.nn.Linear(8, 8)
        >>> optimizer = Muon(layer.parameters(), lr=1e-3)
        >>> optimizer.param_groups[0]["matrices"]
        [1, 0]
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        adjust_lr_fn: str = "match_rms_adamw",
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        matrices: int | Sequence[int] | None = None,
    ) -> None:
        for what, value in (("lr", lr), ("weight_decay", weight_decay), ("eps", eps), ("ns_steps", ns_steps)):
            check_number(what, value)
        check_betas(betas, 2)
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum={momentum!r} must lie in [0, 1), such as 0.95.")
        if adjust_lr_fn not in _ADJUSTMENTS:
            raise ValueError(f"adjust_lr_fn={adjust_lr_fn!r} must be one of {', '.join(_ADJUSTMENTS)}.")
        defaults: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "nesterov": nesterov}
        defaults |= {"ns_steps": ns_steps, "adjust_lr_fn": adjust_lr_fn, "betas": betas, "eps": eps}
        super().__init__(params, {**defaults, "matrices": matrices})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its ``matrices`` becomes a list with one number per parameter."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            counts = _counts(group["matrices"], group["params"])
            group["matrices"] = [_checked(p, count) for p, count in zip(group["params"], counts, strict=True)]
        except ValueError:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step over all parameters that have a gradient."""
        loss = loss_of(closure)
        for group in self.param_groups:
            counts = {id(p): count for p, count in zip(group["params"], group["matrices"], strict=True)}
            members = with_gradients(self, group)
            matrices = [(p, g, counts[id(p)]) for p, g in members if counts[id(p)]]
            if matrices:
                self._step_matrices(group, *zip(*matrices, strict=True))
            step_adamw(self, group, [(p, g) for p, g in members if not counts[id(p)]])
        return loss

    def cost_note(self) -> str:
        """From how many samples and positions per step on Newton-Schulz does not show beside the model's own work."""
        shapes = []
        for group in self.param_groups:
            for parameter, count in zip(group["params"], group["matrices"], strict=True):
                if count:
                    stack = as_stack(parameter.detach(), count)
                    shapes += [(stack.size(1), stack.size(2))] * stack.size(0)
        return note("Newton-Schulz", muon_flops(shapes, steps=self.defaults["ns_steps"]), shapes)

    def _step_matrices(
        self, group: dict[str, Any], members: tuple[Tensor, ...], gradients: tuple[Tensor, ...], counts: tuple[int, ...]
    ) -> None:
        lr, momentum = float(group["lr"]), group["momentum"]
        for parameter in members:
            if not self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        buffers = [self.state[parameter]["momentum_buffer"] for parameter in members]
        foreach.lerp_(buffers, gradients, 1 - momentum)
        updates = foreach.lerp(gradients, buffers, momentum) if group["nesterov"] else buffers
        stacks = [as_stack(update, count) for update, count in zip(updates, counts, strict=True)]
        found = orthogonalize(stacks, steps=group["ns_steps"])
        if group["weight_decay"]:
            foreach.mul_(members, 1 - lr * group["weight_decay"])
        by_scale: dict[float, tuple[list[Tensor], list[Tensor]]] = {}
        for parameter, stack in zip(members, found, strict=True):
            scale = lr * _ADJUSTMENTS[group["adjust_lr_fn"]](*stack.shape[1:])
            parameters, directions = by_scale.setdefault(scale, ([], []))
            parameters.append(parameter)
            directions.append(stack.reshape(parameter.shape))
        for scale, (parameters, directions) in by_scale.items():
            foreach.add_(parameters, directions, alpha=-scale)


def as_stack(tensor: Tensor, count: int) -> Tensor:
    """``tensor`` as a stack of ``count`` matrices: cut along its rows, the other dimensions flattened to columns.

    A tensor with as many rows as matrices, such as the weights of experts, is a stack already.

    Example::
        >>> shapes = ((16, 3, 3, 3), 1), ((24, 8), 3), ((5, 8, 6), 5)
        >>> [tuple(as_stack(torch.zeros(shape), count).shape) for shape, count in shapes]
        [(1, 16, 27), (3, 8, 8), (5, 8, 6)]
    """
    if tensor.ndim > 2 and tensor.size(0) == count > 1:
        return tensor.reshape(count, tensor.size(1), -1)
    return tensor.reshape(count, tensor.size(0) // count, -1)


def _checked(parameter: Tensor, count: int | None) -> int:
    shape = tuple(parameter.shape)
    fits = parameter.ndim >= 2 and not parameter.is_complex()
    if count is None:
        return int(fits and min(as_stack(parameter, 1).shape[1:]) > 1)
    if isinstance(count, bool) or not isinstance(count, int) or count < 0 or (count and not fits):
        raise ValueError(
            f"matrices={count!r} does not fit a {parameter.dtype} parameter of shape {shape}: 0 gives it to AdamW, and a "
            "number above is for real parameters with at least two dimensions."
        )
    if count and parameter.size(0) % count:
        raise ValueError(
            f"matrices={count} does not divide the {parameter.size(0)} rows of a parameter of shape {shape}; "
            "use 1, or 0 for AdamW."
        )
    return count


def _counts(given: Any, parameters: list[Tensor]) -> list[Any]:
    counts = list(given) if isinstance(given, Sequence) else [given] * len(parameters)
    if len(counts) != len(parameters):
        raise ValueError(
            f"matrices={given!r} has {len(counts)} numbers for the {len(parameters)} parameters of its group; give one "
            "for each, or a single one for all."
        )
    return counts
