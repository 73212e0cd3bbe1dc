"""When rounding begins and when ranges and batch norms freeze, in batches of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lightning_perf.host import MisconfigurationException


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


@dataclass
class Schedule:
    """Three moments of a run, each a fraction of its batches or a number of them."""

    start: float | int
    freeze_observers: float | int
    freeze_batch_norm: float | int
    _total: int | None = field(default=None, init=False)

    def resolve(self, trainer: Any, say: Callable[[str], None]) -> None:
        """Find out how many batches the run has, when its loaders exist.

        Raises:
            MisconfigurationException: the run has no known end and ``start`` is a fraction of it.
        """
        steps = trainer.estimated_stepping_batches
        self._total = int(steps) * trainer.accumulate_grad_batches if 0 < steps < float("inf") else None
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
        return batches >= batches_until(self.start, self._total)

    def observers_frozen(self, batches: int) -> bool:
        """Whether ranges stand still."""
        return batches >= batches_until(self.freeze_observers, self._total)

    def norms_frozen(self, batches: int) -> bool:
        """Whether batch norms use their running statistics."""
        return batches >= batches_until(self.freeze_batch_norm, self._total)
