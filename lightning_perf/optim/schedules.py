"""Learning-rate schedules as pure functions of the step: the factor by which the peak learning rate is multiplied.

``step`` counts optimizer steps from 0; the step taken with ``factor(0)`` is the first one. Every schedule takes all its
``total`` steps with a factor above zero, and holds its last value afterwards, so that a run which goes on a little
longer does not stop.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Protocol

_DECAYING_SHARE = 0.2
_ONE_CYCLE_START = 1 / 25
_ONE_CYCLE_END = _ONE_CYCLE_START / 1e4


class Schedule(Protocol):
    """A schedule: steps in, factor of the peak learning rate out."""

    def __call__(self, step: int, *, total: int, warmup: int) -> float: ...


@dataclass(frozen=True)
class ScheduleRow:
    """One schedule.

    Attributes:
        name: What the user writes.
        description: One line.
        source: Paper or upstream page.
        factor: The function; None for ``keep``, which leaves the user's own schedulers in place.
        needs_total: Whether it needs the number of optimizer steps of the run; only such a schedule uses a warm-up.
    """

    name: str
    description: str
    source: str
    factor: Schedule | None
    needs_total: bool


def constant(step: int, *, total: int, warmup: int) -> float:
    """1 at every step: neither a warm-up nor the number of steps plays a part.

    Example::
        >>> [constant(step, total=3, warmup=0) for step in range(3)]
        [1.0, 1.0, 1.0]
    """
    return 1.0


def warmup_linear(step: int, *, total: int, warmup: int) -> float:
    """Linear rise to 1 over ``warmup`` steps, then linear to zero, which ``step == total`` would reach.

    Source: "Straight to Zero", https://arxiv.org/abs/2502.15938. The rise starts at ``1 / warmup`` instead of zero,
    so that the first step is not wasted.

    Example::
        >>> [warmup_linear(step, total=6, warmup=2) for step in range(7)]
        [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (total - step) / (total - warmup))


def warmup_cosine(step: int, *, total: int, warmup: int) -> float:
    """Linear rise to 1 over ``warmup`` steps, then half a cosine to zero, which ``step == total`` would reach.

    Source: SGDR, https://arxiv.org/abs/1608.03983, without restarts. The rise is that of :func:`warmup_linear`.

    Example::
        >>> [round(warmup_cosine(step, total=6, warmup=2), 3) for step in range(7)]
        [0.5, 1.0, 1.0, 0.854, 0.5, 0.146, 0.0]
    """
    if step < warmup:
        return (step + 1) / warmup
    return (1 + math.cos(math.pi * min(1.0, (step - warmup) / (total - warmup)))) / 2


def wsd(step: int, *, total: int, warmup: int) -> float:
    """Linear rise to 1 over ``warmup`` steps, 1, and a linear fall to zero over the last 20 % of the run.

    Source: MiniCPM, https://arxiv.org/abs/2404.06395; the linear fall is that of https://arxiv.org/abs/2405.18392. A
    warm-up that reaches into the last 20 % is cut by the fall.

    Example::
        >>> [wsd(step, total=10, warmup=2) for step in range(11)]
        [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.0]
    """
    rise = (step + 1) / warmup if step < warmup else 1.0
    fall = max(1, round(_DECAYING_SHARE * total))
    return min(rise, max(0.0, (total - step) / fall), 1.0)


def one_cycle(step: int, *, total: int, warmup: int) -> float:
    """Half a cosine from 1/25 to 1 over ``warmup`` steps, then half a cosine down to 1/250000 at the last step.

    The values of ``torch.optim.lr_scheduler.OneCycleLR`` with ``pct_start = warmup / total``. Source: Smith and Topin,
    https://arxiv.org/abs/1708.07120. Two deviations: only the learning rate is cycled, momentum and betas stay the
    optimizer's; and ``warmup`` means here what it means in the other schedules, so that the paper's long rise has to be
    asked for (``warmup=0.3``). With a warm-up of at most one step the cycle starts at 1.

    Example::
        >>> [round(one_cycle(step, total=6, warmup=3), 3) for step in range(6)]
        [0.04, 0.52, 1.0, 0.75, 0.25, 0.0]
    """
    peak = max(0, warmup - 1)
    if step < peak:
        return _half_cosine(_ONE_CYCLE_START, 1.0, step / peak)
    if step == peak:
        return 1.0
    return _half_cosine(1.0, _ONE_CYCLE_END, min(1.0, (step - peak) / max(1, total - 1 - peak)))


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


_ROWS = {
    row.name: row
    for row in (
        ScheduleRow(
            "keep",
            "leaves the user's own schedulers in place",
            "https://docs.pytorch.org/docs/stable/optim.html",
            None,
            needs_total=False,
        ),
        ScheduleRow(
            "constant",
            "the learning rate as given, at every step; no warm-up",
            "https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.ConstantLR.html",
            constant,
            needs_total=False,
        ),
        ScheduleRow(
            "one_cycle",
            "cosine from 1/25 to the peak and down to 1/250000; learning rate only",
            "https://arxiv.org/abs/1708.07120",
            one_cycle,
            needs_total=True,
        ),
        ScheduleRow(
            "warmup_cosine",
            "linear warm-up, then half a cosine to zero",
            "https://arxiv.org/abs/1608.03983",
            warmup_cosine,
            needs_total=True,
        ),
        ScheduleRow(
            "warmup_linear",
            "linear warm-up, then linear to zero",
            "https://arxiv.org/abs/2502.15938",
            warmup_linear,
            needs_total=True,
        ),
        ScheduleRow(
            "wsd",
            "linear warm-up, stable, linear to zero over the last 20 %",
            "https://arxiv.org/abs/2404.06395",
            wsd,
            needs_total=True,
        ),
    )
}


def list_schedules() -> list[ScheduleRow]:
    """All known schedules, ``keep`` included, sorted by name.

    Example::
        >>> [row.name for row in list_schedules()]
        ['constant', 'keep', 'one_cycle', 'warmup_cosine', 'warmup_linear', 'wsd']
    """
    return sorted(_ROWS.values(), key=lambda row: row.name)


def get_schedule(name: str) -> ScheduleRow:
    """The schedule called ``name``.

    Raises:
        ValueError: unknown name; lists the known ones.

    Example::
        >>> get_schedule("wsd").needs_total
        True
    """
    if name not in _ROWS:
        close = difflib.get_close_matches(str(name), _ROWS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"Unknown schedule {name!r}; known are {', '.join(sorted(_ROWS))}.{hint}")
    return _ROWS[name]


def resolve_warmup(warmup: float | int, total: int) -> int:
    """Warm-up in optimizer steps, from a fraction of the run (a float in [0, 1)) or a whole number of steps (an int).

    Args:
        warmup: The setting.
        total: Optimizer steps of the run.

    Returns:
        A number of steps below ``total``; a fraction is rounded to the nearest step.

    Raises:
        ValueError: a negative or non-finite number, a float of 1 or more, as many warm-up steps as the run has.

    Example::
        >>> resolve_warmup(0.05, 1000), resolve_warmup(10, 1000)
        (50, 10)
    """
    if isinstance(warmup, bool) or not isinstance(warmup, Real) or not 0 <= warmup < math.inf:
        raise ValueError(
            f"warmup={warmup!r} is not a warm-up; give a fraction of the run in [0, 1), such as 0.05, "
            "or a whole number of optimizer steps, such as 500."
        )
    if isinstance(warmup, Integral):
        if warmup >= total:
            raise ValueError(
                f"warmup={warmup} steps must be fewer than the {total} optimizer steps of the run; give a fraction of the "
                "run, such as 0.05, or train longer."
            )
        return int(warmup)
    if warmup >= 1:
        raise ValueError(
            f"warmup={warmup!r} is a float, so it must be a fraction of the run below 1; "
            f"for a number of optimizer steps write it as an int, such as {max(1, int(warmup))}."
        )
    return min(round(float(warmup) * total), total - 1)


def make_factor(name: str, total: float | int | None, warmup: float | int) -> Callable[[int], float]:
    """The schedule called ``name`` as a function of the step alone, ready for ``LambdaLR``.

    The result is a plain function on purpose: ``LambdaLR`` saves the attributes of callable objects, and a resumed run
    with more epochs would then get the old ``total`` back.

    Args:
        name: A schedule of ours (not ``keep``).
        total: Optimizer steps of the run; ``None`` or infinity where it is not known.
        warmup: Fraction of the run or whole number of steps, see :func:`resolve_warmup`.

    Raises:
        ValueError: unknown name; ``keep``; a schedule that needs a total where none is known; a wrong warm-up.

    Example::
        >>> factor = make_factor("warmup_linear", total=4, warmup=0.5)
        >>> [factor(step) for step in range(4)]
        [0.5, 1.0, 1.0, 0.5]
    """
    row = get_schedule(name)
    schedule = row.factor
    if schedule is None:
        raise ValueError(f"schedule={name!r} leaves the user's schedulers alone and has no factor; name another one.")
    if not row.needs_total:
        return lambda step: schedule(step, total=0, warmup=0)
    if total is None or not math.isfinite(total) or total < 0:
        raise ValueError(
            f"schedule={name!r} needs the number of optimizer steps of the run, but it is {total} (a loader without "
            "length?); set Trainer(max_steps=...) or use schedule='constant'."
        )
    if total < 1:
        raise ValueError(f"schedule={name!r} needs at least one optimizer step, but the run has {total}; train longer.")
    steps = int(total)
    warmup_steps = resolve_warmup(warmup, steps)
    return lambda step: schedule(step, total=steps, warmup=warmup_steps)
