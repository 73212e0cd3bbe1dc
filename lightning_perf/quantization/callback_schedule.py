"""When rounding begins and when ranges and batch norms freeze, in batches of a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning_perf.host import MisconfigurationException
from lightning_perf.host.run_length import accumulation_by_epoch


def check_moment(name: str, value: float | int) -> None:
    """Raise unless ``value`` is a fraction from 0.0 to 1.0 or a whole number of batches.

    Example::

        >>> check_moment("start", 0.5)
        >>> check_moment("start", 100)
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise ValueError(f"{name}={value!r} must be a fraction of the run (0.0 to 1.0) or a number of batches.")
    if isinstance(value, float) and value > 1:
        raise ValueError(
            f"{name}={value} is a fraction above 1.0; use a whole number for batches, such as {int(value)}."
        )


def batches_until(moment: float | int, total: int | None) -> float:
    """The number of batches before ``moment``; infinite for a fraction of a run of unknown length, but for 0.0.

    Example::

        >>> batches_until(0.5, 10), batches_until(3, None), batches_until(0.5, None), batches_until(0.0, None)
        (5.0, 3.0, inf, 0.0)
    """
    if isinstance(moment, int) or moment == 0:
        return float(moment)
    return float("inf") if total is None else moment * total


def batches_of_run(
    per_epoch: float, epochs: int | None, steps: int, accumulation: int | Mapping[int, int]
) -> int | None:
    """Batches of a run by its limits of epochs and steps (-1: none), whichever comes first; None without an end.

    The last batches of an epoch make a step, however few they are. ``accumulation`` is the number of batches in a step, or
    that from each epoch on.

    Example::

        >>> batches_of_run(10, 2, -1, 4), batches_of_run(10, -1, 4, 4), batches_of_run(float("inf"), -1, -1, 1)
        (20, 14, None)
        >>> batches_of_run(10, -1, 12, {0: 1, 1: 4})  # ten steps, and two of four batches each
        18
    """
    by_epoch = {0: accumulation} if isinstance(accumulation, int) else accumulation
    limits = []
    if epochs not in (None, -1) and per_epoch < float("inf"):
        limits.append(int(per_epoch) * int(epochs or 0))
    if steps != -1 and per_epoch == float("inf"):
        limits.append(steps * by_epoch[0])
    elif steps != -1 and per_epoch > 0:
        limits.append(_batches_of_steps(int(per_epoch), steps, by_epoch))
    return min(limits, default=None)


def _batches_of_steps(per_epoch: int, steps: int, accumulation: Mapping[int, int]) -> int:
    batches, starts = 0, sorted(accumulation)
    for start, end in zip(starts, [*starts[1:], math.inf], strict=True):
        whole, rest = divmod(steps, math.ceil(per_epoch / accumulation[start]))
        if whole < end - start:
            return batches + whole * per_epoch + rest * accumulation[start]
        batches += int(end - start) * per_epoch
        steps -= int(end - start) * math.ceil(per_epoch / accumulation[start])
    raise AssertionError("the last span has no end")


@dataclass
class Schedule:
    """Three moments of a run, each a fraction of its batches or a number of them, counted from the batch ``first``."""

    start: float | int
    freeze_observers: float | int
    freeze_batch_norm: float | int
    first: int = 0
    _total: int | None = field(default=None, init=False)

    def resolve(self, trainer: Any, say: Callable[[str], None]) -> None:
        """Find out how many batches the run has, when its loaders exist.

        Raises:
            MisconfigurationException: the run has no known end and ``start`` is a fraction of it.
        """
        automatic = trainer.lightning_module.automatic_optimization
        total = batches_of_run(
            trainer.num_training_batches,
            trainer.max_epochs,
            trainer.max_steps,
            accumulation_by_epoch(trainer) if automatic else 1,
        )
        self._total = None if total is None else max(total - self.first, 0)
        if self._total is not None:
            return
        if isinstance(self.start, float) and self.start:
            raise MisconfigurationException(
                f"start={self.start} is a fraction of a run without a known end; use a number of batches, such as 1000, or "
                "set max_steps of the Trainer."
            )
        moments = {"freeze_observers": self.freeze_observers, "freeze_batch_norm": self.freeze_batch_norm}
        never = [f"{name}={value}" for name, value in moments.items() if isinstance(value, float) and value]
        if never:
            say(f"the run has no known end, so {' and '.join(never)} never come; pass numbers of batches instead.")

    def started(self, batches: int) -> bool:
        """Whether rounding is on after so many batches."""
        return batches - self.first >= batches_until(self.start, self._total)

    def observers_frozen(self, batches: int) -> bool:
        """Whether ranges stand still."""
        return batches - self.first >= batches_until(self.freeze_observers, self._total)

    def norms_frozen(self, batches: int) -> bool:
        """Whether batch norms use their running statistics."""
        return batches - self.first >= batches_until(self.freeze_batch_norm, self._total)
