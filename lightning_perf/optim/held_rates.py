"""Learning rates that schedulers keep to themselves, such as ``eta_min``: found, scaled, and tried where they are not ours.

What torch's own schedulers hold is known by name. A scheduler of somebody else's may hold rates under any name, or in none
that can be reached, so a copy of it is stepped beside a scaled copy before anything is changed.
"""

from __future__ import annotations

import copy
import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, ReduceLROnPlateau

#: The learning rates in a parameter group.
LEARNING_RATES = ("lr", "initial_lr", "max_lr", "min_lr", "swa_lr")
_MOST_CALLS = 50_000
_CLOSE = 1e-6
_ABOVE = 1.01
_A_RATE = re.compile(r"(?:(^|_)lrs?|(^|_)lr_(base|max|min|init|start|end|final)|(^|_)eta_(max|min))$")


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
    return [{key: lr * (group[key] / peak) for key in LEARNING_RATES if key in group} for group in groups]


def nested(scheduler: Any) -> Iterator[Any]:
    """``scheduler``, and those that it holds, such as the parts of a ``SequentialLR``; each once."""
    seen: set[int] = set()
    waiting = [scheduler]
    while waiting:
        one = waiting.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        for value in getattr(one, "__dict__", {}).values():
            inner = value if isinstance(value, list | tuple) else [value]
            waiting += [part for part in inner if isinstance(part, LRScheduler | ReduceLROnPlateau)]


def held_rates(scheduler: Any) -> dict[str, Any]:
    """The attributes of ``scheduler`` that are learning rates: numbers, or lists of them.

    Example::
        >>> optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
        >>> held_rates(torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5, eta_min=0.01))
        {'eta_min': 0.01, 'base_lrs': [0.1], '_last_lr': [0.1]}
    """
    found = {}
    for key, value in getattr(scheduler, "__dict__", {}).items():
        smallest_change = key == "eps" and isinstance(scheduler, ReduceLROnPlateau)
        if not smallest_change and not _A_RATE.search(key):
            continue
        if _is_number(value) or (isinstance(value, list | tuple) and value and all(map(_is_number, value))):
            found[key] = value
    return found


def _is_number(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.numel() == 1
    return isinstance(value, int | float) and not isinstance(value, bool)


class SchedulerRates:
    """The learning rates that schedulers keep to themselves, as they are now, to be scaled as often as wanted."""

    def __init__(self, schedulers: Iterable[Any], optimizer: Optimizer) -> None:
        reference = reference_lr(optimizer) or math.nan  # nothing has a ratio to zero
        self._shares = [
            (one, key, _each(lambda value: value / reference, rates))
            for scheduler in schedulers
            for one in nested(scheduler)
            if getattr(one, "optimizer", None) is optimizer
            for key, rates in held_rates(one).items()
        ]

    def scale(self, lr: float) -> None:
        """Scale them so that what was the largest peak of the optimizer becomes ``lr``."""
        for scheduler, key, shares in self._shares:
            setattr(scheduler, key, _each(lambda share: lr * share, shares))


def _each(function: Callable[[Any], Any], rates: Any) -> Any:
    return type(rates)(map(function, rates)) if isinstance(rates, list | tuple) else function(rates)


def cannot_scale(
    scheduler: Any,
    optimizer: Optimizer,
    lr: float,
    *,
    calls: Callable[[], float | None],
    metric: bool = False,
    shared: Iterable[object] = (),
) -> str | None:
    """Why ``scheduler`` would not keep its shape if the peak of ``optimizer`` became ``lr``; ``None`` if it would.

    Args:
        scheduler: of ``optimizer``; neither is changed.
        optimizer: whose largest peak is to change.
        lr: the new one.
        calls: tells how often the run steps the scheduler; a class that is not torch's is tried for as many steps, and
            for 50,000 at most or where that is unknown.
        metric: whether ``step`` is given a metric.
        shared: objects that the scheduler may refer to and that must not be copied.
    """
    for one in nested(scheduler):
        if not isinstance(one, LRScheduler | ReduceLROnPlateau):
            return f"{type(one).__name__} is not a scheduler of torch"
        if isinstance(one, CyclicLR):
            return "CyclicLR keeps its peaks to itself"
    foreign = [type(one).__name__ for one in nested(scheduler) if not type(one).__module__.startswith("torch.optim.")]
    if not foreign:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = _try_scaling(scheduler, optimizer, lr, calls=_bounded(calls()), metric=metric, shared=tuple(shared))
    return f"{foreign[0]} {found}" if found is not None else None


def _bounded(calls: float | None) -> int:
    return math.ceil(min(calls, _MOST_CALLS)) if calls is not None and calls > 0 else _MOST_CALLS


def _try_scaling(
    scheduler: Any, optimizer: Optimizer, lr: float, *, calls: int, metric: bool, shared: tuple[object, ...]
) -> str | None:
    try:
        plain, old = _copy(scheduler, optimizer, shared)
        scaled, new = _copy(scheduler, optimizer, shared)
    except Exception as error:  # whatever the class makes of being copied
        return f"cannot be copied to see whether it scales ({type(error).__name__}: {error})"
    reference = reference_lr(optimizer)
    SchedulerRates([scaled], new).scale(lr)
    for group, rates in zip(new.param_groups, rates_like(old.param_groups, lr), strict=True):
        group.update(rates)
    arguments = (1.0,) if metric else ()
    for call in range(1, calls + 1):
        try:
            plain.step(*arguments)
        except Exception as error:
            if call > 1:
                return None  # so it would in the run, at any rate
            return f"cannot be stepped to see whether it scales ({type(error).__name__}: {error})"
        highest = max(float(group["lr"]) for group in old.param_groups)
        if highest > reference * _ABOVE:
            return (
                f"rises to {highest:.3g}, above the {reference:.3g} that {type(optimizer).__name__} was given, so that lr "
                "would not be its peak"
            )
        try:
            scaled.step(*arguments)
        except Exception as error:
            return f"cannot be stepped at another rate ({type(error).__name__}: {error})"
        for one, other in zip(old.param_groups, new.param_groups, strict=True):
            due, found = lr * float(one["lr"]) / reference, float(other["lr"])
            if not math.isclose(due, found, rel_tol=_CLOSE, abs_tol=_CLOSE * lr):
                return (
                    "holds learning rates of its own that do not scale: at its "
                    f"step {call} it would set {found:.3g} instead of {due:.3g}"
                )
    return None


def _copy(scheduler: Any, optimizer: Optimizer, shared: tuple[object, ...]) -> tuple[Any, Optimizer]:
    """A copy of ``scheduler`` that drives an optimizer with the settings of ``optimizer`` and next to no parameters."""
    left_out = ("params", "param_names", "names")
    settings = [{k: v for k, v in group.items() if k not in left_out} for group in optimizer.param_groups]
    stand_in = SGD([{"params": [nn.Parameter(torch.zeros(()))]} for _ in settings], lr=1.0)
    for group, own in zip(stand_in.param_groups, settings, strict=True):
        group.update(copy.deepcopy(own))
    stand_in.defaults = dict(optimizer.defaults)
    memo: dict[int, Any] = {id(one): one for one in shared}
    memo[id(optimizer)] = stand_in
    return copy.deepcopy(scheduler, memo), stand_in
