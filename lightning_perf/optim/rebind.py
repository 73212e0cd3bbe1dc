"""Take over from the user's optimizer: its parameters, the ratios of its learning rates, its schedulers.

Every learning rate is written as ``lr * (its value / the largest peak)``, so that the group with the largest peak gets
``lr`` itself, to the last bit, and taking over at one rate and scaling to another later gives what taking over at the
other would have given.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR, LambdaLR

from lightning_perf.optim.held_rates import LEARNING_RATES, nested, peak_of, rates_like, reference_lr
from lightning_perf.optim.param_groups import infer_groups

_MOMENTA = ("base_momentum", "max_momentum")


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
    schedulers = list(schedulers)
    for one in (part for scheduler in schedulers for part in nested(scheduler)):
        if isinstance(one, CyclicLR) and one.optimizer is optimizer:
            for group, peak in zip(optimizer.param_groups, one.max_lrs, strict=True):
                group["max_lr"] = peak
    cycled = any(getattr(scheduler, "cycle_momentum", False) for scheduler in schedulers)
    for group in optimizer.param_groups:
        group["lr"] = peak_of(group)
        for key in (*LEARNING_RATES, *_MOMENTA):
            if key != "lr":
                group.pop(key, None)
        for key in ("betas", "momentum"):
            if cycled and key in group:
                group[key] = optimizer.defaults[key]


def cannot_rebind(scheduler: Any, new: Optimizer) -> str | None:
    """Why ``scheduler``, whose rates can be scaled, cannot drive ``new``, or ``None`` if it can."""
    for one in nested(scheduler):
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
    :class:`lightning_perf.optim.held_rates.SchedulerRates`.
    """
    rates = [group["lr"] for group in new.param_groups]
    LambdaLR(new, lambda _: 1.0)  # marks new.step as tracked, or torch warns that the step was overridden
    for group, lr in zip(new.param_groups, rates, strict=True):
        group["lr"] = lr
    for one in nested(scheduler):
        for key, value in list(vars(one).items()):
            if value is old:
                setattr(one, key, new)
