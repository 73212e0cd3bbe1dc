"""Take over from the user's optimizer: its parameters, the ratios of its learning rates, its schedulers.

Every learning rate is written as ``lr * (its value / the largest peak)``, so that the group with the largest peak gets
``lr`` itself, to the last bit, and taking over at one rate and scaling to another later gives what taking over at the
other would have given.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR, LambdaLR, LRScheduler, ReduceLROnPlateau

from lightning_perf.optim.param_groups import infer_groups

_LEARNING_RATES = ("lr", "initial_lr", "max_lr", "min_lr")
_MOMENTA = ("base_momentum", "max_momentum")


def reference_lr(optimizer: Optimizer) -> float:
    """The learning rate that ``optimizer`` was given: the largest peak of its groups, before any schedule scaled it."""
    return max(peak_of(group) for group in optimizer.param_groups)


def peak_of(group: Mapping[str, Any]) -> float:
    """The learning rate of a group before any schedule scaled it."""
    return float(group.get("max_lr", group.get("initial_lr", group["lr"])))


def rates_like(groups: Iterable[Mapping[str, Any]], lr: float) -> list[dict[str, Any]]:
    """The learning rates of ``groups``, and those that schedulers keep there, scaled so that the largest peak is ``lr``."""
    groups = list(groups)
    peak = max(peak_of(group) for group in groups)
    return [{key: lr * (group[key] / peak) for key in _LEARNING_RATES if key in group} for group in groups]


def groups_like(optimizer: Optimizer, *, lr: float, weight_decay: float | None) -> list[dict[str, Any]]:
    """Groups of another optimizer with the partition of ``optimizer``, so that its schedulers can be moved there.

    Learning rates are those of :func:`rates_like`: ratios between groups and the position in the schedule stay. A group
    whose decay the user switched off, while other groups have some, stays without.

    Args:
        optimizer: the user's.
        lr: the new peak.
        weight_decay: the new decay of the groups that decay; ``None`` leaves it to the new optimizer's default.
    """
    decays = [float(group.get("weight_decay", 0.0)) for group in optimizer.param_groups]
    rates = rates_like(optimizer.param_groups, lr)
    groups: list[dict[str, Any]] = []
    for group, decay, own in zip(optimizer.param_groups, decays, rates, strict=True):
        new: dict[str, Any] = {"params": list(group["params"]), **own}
        for key in (*_MOMENTA, "name", "param_names"):
            if key in group:
                new[key] = group[key]
        if decay == 0.0 and any(decays):
            new["weight_decay"] = 0.0
        elif weight_decay is not None:
            new["weight_decay"] = weight_decay
        groups.append(new)
    return groups


def groups_over(
    module: nn.Module,
    optimizer: Optimizer,
    *,
    lr: float,
    weight_decay: float | None,
    patterns: Mapping[str, Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Inferred groups over the parameters of ``optimizer``, split further where the user's learning rates differ."""
    peak = reference_lr(optimizer)
    ratio = {id(p): peak_of(group) / peak for group in optimizer.param_groups for p in group["params"]}
    chosen = [p for group in optimizer.param_groups for p in group["params"]]
    split: list[dict[str, Any]] = []
    for group in infer_groups(module, weight_decay=weight_decay or 0.0, groups=patterns, parameters=chosen):
        ratios = sorted({ratio[id(p)] for p in group["params"]}, reverse=True)
        for one in ratios:
            members = [i for i, p in enumerate(group["params"]) if ratio[id(p)] == one]
            part = dict(group)
            part["params"] = [group["params"][i] for i in members]
            part["param_names"] = [group["param_names"][i] for i in members]
            part.setdefault("lr", lr * one)
            if len(ratios) > 1:
                part["name"] = f"{group['name']} (lr x{one:g})"
            split.append(part)
    return split


def forget_schedulers(optimizer: Optimizer, schedulers: Iterable[Any]) -> None:
    """Put the peaks back that schedulers have scaled, and the momenta that they cycle."""
    cycled = any(getattr(scheduler, "cycle_momentum", False) for scheduler in schedulers)
    for group in optimizer.param_groups:
        group["lr"] = peak_of(group)
        for key in ("initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum"):
            group.pop(key, None)
        for key in ("betas", "momentum"):
            if cycled and key in group:
                group[key] = optimizer.defaults[key]


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

    ``new`` must have the groups of :func:`groups_like`; the rates that schedulers keep to themselves are scaled by
    :class:`SchedulerRates`.
    """
    rates = [group["lr"] for group in new.param_groups]
    LambdaLR(new, lambda _: 1.0)  # marks new.step as tracked, or torch warns that the step was overridden
    for group, lr in zip(new.param_groups, rates, strict=True):
        group["lr"] = lr
    for one in _nested(scheduler):
        if getattr(one, "optimizer", None) is old:
            one.optimizer = new


class SchedulerRates:
    """The learning rates that schedulers keep to themselves, as they are now, to be scaled as often as wanted."""

    def __init__(self, schedulers: Iterable[Any], optimizer: Optimizer) -> None:
        self._reference = reference_lr(optimizer)
        self._rows = [
            (one, key, list(getattr(one, key)))
            for scheduler in schedulers
            for one in _nested(scheduler)
            for key in ("base_lrs", "max_lrs", "_last_lr")
            if getattr(one, "optimizer", None) is optimizer and isinstance(getattr(one, key, None), list)
        ]

    def scale(self, lr: float) -> None:
        """Scale them so that what was the largest peak of the optimizer becomes ``lr``."""
        for scheduler, key, values in self._rows:
            setattr(scheduler, key, [lr * (value / self._reference) for value in values])


def _nested(scheduler: Any) -> Iterator[Any]:
    yield scheduler
    for inner in getattr(scheduler, "_schedulers", ()):
        yield from _nested(inner)
