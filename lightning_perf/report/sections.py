"""Further parts of a report below its table of variants: small tables and plots with words around them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Series:
    """One named series of a plot: points ``(x, y)``, or spans ``(start, stop)`` of a timeline's row.

    ``kind`` is ``line``, ``points``, ``bar`` or ``spans``; ``row`` is the height of spans on the page.
    """

    name: str
    points: Sequence[tuple[float, float]]
    kind: Literal["line", "points", "bar", "spans"] = "line"
    row: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "points", tuple((float(x), float(y)) for x, y in self.points))


@dataclass(frozen=True)
class Plot:
    """A plot, without a word about how it is drawn: series, axes, and which of these are logarithmic (``""`` to ``xy``)."""

    caption: str
    series: Sequence[Series]
    x: str = ""
    y: str = ""
    logarithmic: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "series", tuple(_made(Series, one) for one in self.series))


@dataclass(frozen=True)
class Section:
    """A titled part of a report: sentences, a table, plots; each may be empty.

    Raises:
        ValueError: a row of the table has not as many cells as there are headers.

    Example::

        >>> Section("Phases", headers=("phase", "ms"), rows=[("forward", "3.1")]).rows
        (('forward', '3.1'),)
    """

    title: str
    sentences: Sequence[str] = ()
    headers: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    plots: Sequence[Plot] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        for name in ("sentences", "headers"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "rows", tuple(tuple(str(cell) for cell in row) for row in self.rows))
        object.__setattr__(self, "plots", tuple(_made(Plot, one) for one in self.plots))
        for row in self.rows:
            if len(row) != len(self.headers):
                raise ValueError(
                    f"section {self.title!r} has {len(self.headers)} headers {list(self.headers)} and a row of {len(row)} "
                    f"cells {list(row)}; give every row one cell per header."
                )


def _made(cls: type, value: object) -> object:
    """A dataclass as it is, or made from the mapping that JSON keeps of it."""
    return cls(**value) if isinstance(value, dict) else value
