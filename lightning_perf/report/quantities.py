"""What a report can measure: names, units, and how two variants are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Quantity:
    """One row of a report.

    Values are stored in base units (seconds, bytes, fractions) and shown as ``value * scale`` with ``digits`` decimals
    and ``unit``. ``compare`` says whether two variants are compared by their ratio or by their difference; ``kind``
    lets a report see that a speed is never shown without memory and quality.

    Raises:
        ValueError: an unknown ``better``, ``compare`` or ``kind``.

    Example::

        >>> Quantity("peak", "peak memory", "MB", better="lower", digits=0, scale=1e-6).text(123_456_789)
        '123 MB'
    """

    key: str
    label: str
    unit: str
    better: Literal["higher", "lower"] | None = None
    digits: int = 2
    compare: Literal["ratio", "difference"] = "ratio"
    scale: float = 1.0
    kind: Literal["speed", "memory", "quality", "other"] = "other"

    def __post_init__(self) -> None:
        for name, known in (
            ("better", ("higher", "lower", None)),
            ("compare", ("ratio", "difference")),
            ("kind", ("speed", "memory", "quality", "other")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"Quantity {self.key!r}: {name}={getattr(self, name)!r} is not one of {list(known)}")

    def text(self, value: float) -> str:
        """The value as a reader sees it, with its unit."""
        number = f"{value * self.scale:,.{self.digits}f}"
        return f"{number} {self.unit}" if self.unit and self.unit != "%" else number + self.unit


SAMPLES_PER_SECOND = Quantity(
    "samples_per_second", "training speed", "samples/s", better="higher", digits=0, kind="speed"
)
TRAIN_SECONDS = Quantity("train_seconds", "training time", "s", better="lower", digits=1, kind="speed")
SECONDS_TO_TARGET = Quantity("seconds_to_target", "time to target", "s", better="lower", digits=1, kind="speed")
PEAK_MEMORY = Quantity("peak_memory", "peak memory", "MB", better="lower", digits=0, scale=1e-6, kind="memory")
FINAL_METRIC = Quantity(
    "final_metric", "final metric", "", better="higher", digits=4, compare="difference", kind="quality"
)
FINAL_ACCURACY = Quantity(
    "final_metric", "final accuracy", "%", better="higher", digits=2, compare="difference", scale=100.0, kind="quality"
)
"""Give these their own words with ``dataclasses.replace(FINAL_METRIC, label="val_f1")``."""
