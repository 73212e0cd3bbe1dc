"""The plots of a report's sections as inline SVG; needs matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning_perf._optional import require
from lightning_perf.report.plots import GRID_RC, as_svg, series_colour

if TYPE_CHECKING:
    from lightning_perf.report.sections import Plot, Section, Series

_PURPOSE = "the plots of a report"


def draw(section: Section, index: int) -> list[tuple[str, str]]:
    """The plots of one section as (caption, SVG).

    Raises:
        ImportError: matplotlib is not installed, and the section has a plot.
    """
    if not section.plots:
        return []
    matplotlib = require("matplotlib", extra="report", purpose=_PURPOSE)
    figure = require("matplotlib.figure", extra="report", purpose=_PURPOSE).Figure
    drawn = []
    for number, plot in enumerate(section.plots):
        name = f"section{index}-{number}"
        with matplotlib.rc_context({**GRID_RC, "svg.hashsalt": name}):
            drawn.append((plot.caption, _plot(figure, plot, name)))
    return drawn


def _plot(figure: Any, plot: Plot, name: str) -> str:
    spans = [one for one in plot.series if one.kind == "spans"]
    bars = [one for one in plot.series if one.kind == "bar"]
    rows = len(bars) or 1 + max((one.row for one in spans), default=-1)
    canvas = figure(figsize=(5.6, max(3.4, 0.6 + 0.3 * rows)), layout="constrained")
    axes = canvas.add_subplot()
    for number, one in enumerate(plot.series):
        _series(axes, one, series_colour(number), number)
    if bars:
        axes.set_yticks(range(len(bars)), [one.name for one in bars], parse_math=False)
        axes.invert_yaxis()
    elif spans:
        axes.set_yticks([])
        axes.invert_yaxis()
    if not bars and any(one.name for one in plot.series):
        canvas.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=3)
    if "x" in plot.logarithmic:
        axes.set_xscale("log")
    if "y" in plot.logarithmic:
        axes.set_yscale("log")
    axes.set_xlabel(plot.x, parse_math=False)
    axes.set_ylabel(plot.y, parse_math=False)
    axes.grid(visible=True, axis="x" if bars or spans else "both", linewidth=0.6)
    axes.set_axisbelow(True)
    return as_svg(canvas, name)


def _series(axes: Any, one: Series, colour: str, number: int) -> None:
    if one.kind == "spans":
        widths = [(start, stop - start) for start, stop in one.points]
        axes.broken_barh(widths, (one.row - 0.4, 0.8), facecolors=colour, label=_label(one.name))
    elif one.kind == "bar":
        axes.barh(number, one.points[0][1], color=colour, height=0.7)
        axes.annotate(
            f"{one.points[0][1]:.3g}",
            (one.points[0][1], number),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            parse_math=False,
        )
        axes.margins(x=0.15)
    elif one.kind == "points":
        axes.plot(*zip(*one.points, strict=True), color=colour, marker="o", linestyle="", label=_label(one.name))
    elif one.points:
        axes.plot(*zip(*one.points, strict=True), color=colour, linewidth=1.6, label=_label(one.name))


def _label(name: str) -> str:
    """A legend's label without the two characters that mean something to matplotlib."""
    return name.replace("$", r"\$").lstrip("_")
