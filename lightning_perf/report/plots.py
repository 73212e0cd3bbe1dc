"""The report's plots as inline SVG that follows the page's colours; needs matplotlib."""

from __future__ import annotations

import io
import math
import re
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lightning_perf._optional import require
from lightning_perf.measuring import Interval
from lightning_perf.report.quantities import Quantity
from lightning_perf.report.rows import comparison_text

if TYPE_CHECKING:
    from lightning_perf.report.result import Points, Report

# Placeholders that no one draws with; `as_svg` turns them into the page's CSS variables.
_INK, _GRID = "#fd0000", "#fd0001"
SERIES = 8
_COMPARISONS = {
    "ratio": "Times better than {}, with interval: right of 1 is better",
    "difference": "Difference to {}, with interval",
}
GRID_RC = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def plots(report: Report) -> list[tuple[str, str]]:
    """All plots of a report as (caption, SVG): each curve over seconds, then the ratios.

    Raises:
        ImportError: matplotlib is not installed.
    """
    matplotlib = require("matplotlib", extra="report", purpose="the plots of a report")
    figure = require("matplotlib.figure", extra="report", purpose="the plots of a report").Figure
    drawn: list[tuple[str, str]] = []
    names = dict.fromkeys(name for run in report.runs for name, points in run.curves.items() if points)
    for index, name in enumerate(names):
        with matplotlib.rc_context({**GRID_RC, "svg.hashsalt": f"curve {index}"}):
            drawn.append(
                (f"{name} over seconds: single runs thin, their median bold", _curve(figure, report, name, index))
            )
    for by, caption in _COMPARISONS.items():
        if groups := _groups(report, by):
            with matplotlib.rc_context({**GRID_RC, "svg.hashsalt": by}):
                drawn.append((caption.format(report.baseline), _bars(figure, report, by, groups)))
    return drawn


def thinned(points: Points, most: int = 150) -> Points:
    """Means over equal blocks of neighbouring points, so that at most ``most`` are left.

    Example::

        >>> thinned(((0.0, 1.0), (1.0, 3.0), (2.0, 5.0)), most=2)
        ((0.5, 2.0), (2.0, 5.0))
    """
    block = -(-len(points) // most)
    if block <= 1:
        return points
    groups = [points[start : start + block] for start in range(0, len(points), block)]
    return tuple((statistics.fmean(x for x, _ in group), statistics.fmean(y for _, y in group)) for group in groups)


def median_curve(curves: Sequence[Points]) -> Points:
    """The i-th median point is the median of the i-th points, in time and in value, as far as every curve goes.

    Example::

        >>> median_curve([((1.0, 5.0), (2.0, 4.0)), ((3.0, 7.0),), ((2.0, 6.0), (9.0, 1.0))])
        ((2.0, 6.0),)
    """
    steps = min((len(curve) for curve in curves), default=0)
    return tuple(
        (_median([curve[i][0] for curve in curves]), _median([curve[i][1] for curve in curves])) for i in range(steps)
    )


def _median(values: list[float]) -> float:
    return statistics.median(values) if all(math.isfinite(value) for value in values) else math.nan


def series_colour(index: int) -> str:
    """A placeholder for the colour of the series of that number; :func:`as_svg` turns it into the page's own."""
    return f"#fe00{index % SERIES:02x}"


def _curve(figure: Any, report: Report, name: str, index: int) -> str:
    canvas = figure(figsize=(5.6, 3.4), layout="constrained")
    axes = canvas.add_subplot()
    for number, variant in enumerate(report.variants):
        curves = [run.curves[name] for run in report.runs_of(variant) if run.curves.get(name)]
        for curve in curves:
            axes.plot(*zip(*thinned(curve), strict=True), color=series_colour(number), linewidth=0.9, alpha=0.35)
        middle = median_curve([thinned(curve) for curve in curves])
        if middle:
            marker = "o" if len(middle) <= 12 else None
            axes.plot(
                *zip(*middle, strict=True), color=series_colour(number), linewidth=2.2, marker=marker, markersize=4
            )
    axes.set_xlabel("seconds")
    axes.set_ylabel(name, parse_math=False)
    axes.grid(visible=True, linewidth=0.6)
    return as_svg(canvas, f"curve{index}")


def _groups(report: Report, by: str) -> list[tuple[Quantity, list[tuple[int, Interval]]]]:
    """Each quantity compared in this way, with (series, interval) of every variant that has one."""
    groups: list[tuple[Quantity, list[tuple[int, Interval]]]] = []
    for quantity in report.quantities:
        found = [(number, report.comparison(quantity.key, name)) for number, name in enumerate(report.variants)]
        bars = [(number, interval) for number, interval in found if interval is not None]
        if bars and quantity.compare == by:
            groups.append((quantity, bars))
    return groups


def _bars(figure: Any, report: Report, by: str, groups: list[tuple[Quantity, list[tuple[int, Interval]]]]) -> str:
    canvas = figure(figsize=(5.6, 1.0 + sum(0.34 * len(bars) + 0.25 for _, bars in groups)), layout="constrained")
    axes = canvas.add_subplot()
    same = 1.0 if by == "ratio" else 0.0
    ticks: list[float] = []
    position = 0.0
    for quantity, bars in groups:
        start, scale = position, quantity.scale if by == "difference" else 1.0
        for number, interval in bars:
            estimate, low, high = (scale * end for end in (interval.estimate, interval.low, interval.high))
            axes.barh(position, estimate - same, left=same, height=0.8, color=series_colour(number), alpha=0.85)
            spread = [[estimate - low], [high - estimate]]
            axes.errorbar(estimate, position, xerr=spread, color=_INK, capsize=3, linewidth=1.2)
            label = comparison_text(quantity, interval).partition(" [")[0]
            where = {"xytext": (6, 0), "textcoords": "offset points", "va": "center", "parse_math": False}
            axes.annotate(label, (max(high, same), position), **where)
            position += 1
        ticks.append((start + position - 1) / 2)
        position += 0.7
    axes.axvline(same, color=_INK, linewidth=1)
    axes.set_yticks(ticks, [quantity.label for quantity, _ in groups], parse_math=False)
    axes.invert_yaxis()
    axes.margins(x=0.18)
    axes.grid(visible=True, axis="x", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(f"{by}, against {report.baseline}", parse_math=False)
    return as_svg(canvas, by)


def as_svg(canvas: Any, prefix: str) -> str:
    """The figure as an SVG element: no prologue, no metadata, ids of its own, colours from the page."""
    buffer = io.StringIO()
    empty = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    canvas.savefig(buffer, format="svg", transparent=True, metadata=empty)
    content = buffer.getvalue()
    content = content[content.index("<svg") :]
    content = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", content)
    content = content.replace(_INK, "var(--ink)").replace(_GRID, "var(--grid)")
    return re.sub(r"#fe00(0\d)", lambda found: f"var(--series-{int(found[1])})", content)
