"""How sparse the weights are at which part of a run, as pure functions of numbers."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

#: A ramp is climbed in so many steps at most: each costs a selection over all weights.
UPDATES = 100


def cubic(progress: float) -> float:
    """Share of the final sparsity at a share ``progress`` of the ramp: fast while there is much to prune, then slow.

    Source: Zhu and Gupta, "To prune, or not to prune", https://arxiv.org/abs/1710.01878, with initial sparsity 0.

    Example::

        >>> [cubic(progress) for progress in (0.0, 0.5, 1.0)]
        [0.0, 0.875, 1.0]
    """
    return 1.0 - (1.0 - progress) ** 3


def one_shot(progress: float) -> float:
    """All at once, where the ramp begins.

    Example::

        >>> one_shot(0.0)
        1.0
    """
    return 1.0


SCHEDULES: MappingProxyType[str, Callable[[float], float]] = MappingProxyType({"cubic": cubic, "one_shot": one_shot})


def sparsity_at(fraction: float, *, final: float, schedule: str, start: float, end: float) -> float:
    """The sparsity that is due when ``fraction`` of the run is done.

    Zero before ``start``, ``final`` from ``end`` on; in between the schedule, in :data:`UPDATES` steps of equal length.

    Deviation from Zhu and Gupta: they count the training steps between two updates; here a ramp of any length has as many.

    Args:
        fraction: share of the run that is done.
        final: the sparsity at the end.
        schedule: a name of :data:`SCHEDULES`.
        start: share of the run at which pruning begins.
        end: share of the run from which on the sparsity is final.

    Example::

        >>> [sparsity_at(f, final=0.8, schedule="cubic", start=0.2, end=0.6) for f in (0.1, 0.4, 0.6, 1.0)]
        [0.0, 0.7000000000000001, 0.8, 0.8]
    """
    if fraction < start:
        return 0.0
    if fraction >= end:
        return final
    done = int((fraction - start) / (end - start) * UPDATES) / UPDATES
    return final * SCHEDULES[schedule](done)


def check_schedule(schedule: str, start: float, end: float) -> None:
    """What can be known about a schedule before a run.

    Raises:
        ValueError: an unknown name; positions that are not fractions of a run in their order.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule={schedule!r} is unknown; pass one of {', '.join(map(repr, SCHEDULES))}.")
    for name, value in (("start", start), ("end", end)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise ValueError(
                f"{name}={value!r} is no part of the run: positions are fractions of its steps, between 0 and 1, and a "
                "schedule longer than the run would never be finished."
            )
    if schedule == "cubic" and not start < end:
        raise ValueError(f"start={start!r} must come before end={end!r}; for a single step pass schedule='one_shot'.")
