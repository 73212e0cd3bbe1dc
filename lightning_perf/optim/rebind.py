"""Move the user's learning-rate schedulers from one optimizer to another without losing their shape."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR, LambdaLR, LRScheduler, ReduceLROnPlateau

_LEARNING_RATES = ("initial_lr", "max_lr", "min_lr")
_MOMENTA = ("base_momentum", "max_momentum")


def reference_lr(optimizer: Optimizer) -> float:
    """The learning rate that ``optimizer`` was given: the largest peak of its groups, before any schedule scaled it."""
    return max(_peak(group) for group in optimizer.param_groups)


def groups_like(optimizer: Optimizer, *, lr: float, weight_decay: float | None) -> list[dict[str, Any]]:
    """Groups of another optimizer with the partition of ``optimizer``, so that its schedulers can be moved there.

    Learning rates are scaled so that the largest peak becomes ``lr``: ratios between groups and the position in the
    schedule stay. A group whose decay the user switched off, while other groups have some, stays without.

    Args:
        optimizer: the user's.
        lr: the new peak.
        weight_decay: the new decay of the groups that decay; ``None`` leaves it to the new optimizer's default.
    """
    factor = lr / reference_lr(optimizer)
    decays = [float(group.get("weight_decay", 0.0)) for group in optimizer.param_groups]
    groups: list[dict[str, Any]] = []
    for group, decay in zip(optimizer.param_groups, decays, strict=True):
        new: dict[str, Any] = {"params": list(group["params"]), "lr": _scaled(group["lr"], factor)}
        for key in _LEARNING_RATES:
            if key in group:
                new[key] = _scaled(group[key], factor)
        for key in (*_MOMENTA, "name", "param_names"):
            if key in group:
                new[key] = group[key]
        if decay == 0.0 and any(decays):
            new["weight_decay"] = 0.0
        elif weight_decay is not None:
            new["weight_decay"] = weight_decay
        groups.append(new)
    return groups


def cannot_rebind(scheduler: Any, new: Optimizer) -> str | None:
    """Why ``scheduler`` cannot drive ``new``, or ``None`` if it can."""
    for one in _nested(scheduler):
        if not isinstance(one, LRScheduler | ReduceLROnPlateau):
            return f"{type(one).__name__} is not a scheduler of torch"
        if isinstance(one, CyclicLR):
            return "CyclicLR keeps its peaks to itself"
        if getattr(one, "cycle_momentum", False) and bool(getattr(one, "use_beta1", False)) != (
            "betas" in new.defaults
        ):
            kind = "betas" if getattr(one, "use_beta1", False) else "momentum"
            return f"{type(one).__name__} cycles {kind}, which {type(new).__name__} does not have"
        if getattr(one, "cycle_momentum", False) and "betas" not in new.defaults and "momentum" not in new.defaults:
            return f"{type(one).__name__} cycles momentum, which {type(new).__name__} does not have"
    return None


def rebind(scheduler: Any, old: Optimizer, new: Optimizer) -> None:
    """Make ``scheduler`` (and the schedulers inside it) drive ``new`` in place of ``old``.

    ``new`` must have the groups of :func:`groups_like`.
    """
    factor = _peak(new.param_groups[0]) / _peak(old.param_groups[0])
    rates = [group["lr"] for group in new.param_groups]
    LambdaLR(new, lambda _: 1.0)  # marks new.step as tracked, or torch warns that the step was overridden
    for group, lr in zip(new.param_groups, rates, strict=True):
        group["lr"] = lr
    for one in _nested(scheduler):
        if getattr(one, "optimizer", None) is not old:
            continue
        one.optimizer = new
        for key in ("base_lrs", "max_lrs", "_last_lr"):
            if isinstance(getattr(one, key, None), list):
                setattr(one, key, [_scaled(value, factor) for value in getattr(one, key)])


def _nested(scheduler: Any) -> Iterator[Any]:
    yield scheduler
    for inner in getattr(scheduler, "_schedulers", ()):
        yield from _nested(inner)


def _peak(group: dict[str, Any]) -> float:
    return float(group.get("max_lr", group.get("initial_lr", group["lr"])))


def _scaled(value: float | Tensor, factor: float) -> float | Tensor:
    return value * factor
