"""What benchmarks write into guide pages: pictures, and the text between two marks."""

from __future__ import annotations

import contextlib
import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.goals import RESULTS
from lightning_perf.report import Report

GUIDES = Path(__file__).parent.parent / "docs" / "guides"
END = "<!-- end of measured -->"


def start_of(writer: str) -> str:
    """The mark above what a benchmark writes; ``writer`` is what follows ``python -m benchmarks.``."""
    return f"<!-- measured: written by `python -m benchmarks.{writer}` from benchmarks/results -->\n"


def into(page: Path, writer: str, text: str) -> None:
    """Put ``text`` between a writer's mark on a page and the next end mark.

    Raises:
        ValueError: the page has no such mark, or several.
    """
    parts = page.read_text(encoding="utf-8").split(start_of(writer))
    if len(parts) != 2 or END not in parts[1]:
        raise ValueError(f"{page} needs once, with {END} below it: {start_of(writer)}")
    page.write_text(f"{parts[0]}{start_of(writer)}{text}{END}{parts[1].split(END, 1)[1]}", encoding="utf-8")


def reports(name: str, results: Path = RESULTS) -> dict[str, Report]:
    """The reports of one benchmark by the stem of their file: the whole protocol first, then the reduced ones."""
    found: dict[str, tuple[float, Report]] = {}
    for path in results.glob(f"{name}*.json"):
        match = re.fullmatch(rf"{name}(?:_(\d+))?", path.stem)
        if match:
            found[path.stem] = (-float(match[1] or "inf"), Report.from_json(path))
    return {stem: report for stem, (_, report) in sorted(found.items(), key=lambda item: item[1][0])}


def publish(
    name: str,
    page: Path,
    draw: Callable[[Report, Path], None],
    section: Callable[[Report], str],
    results: Path = RESULTS,
) -> None:
    """Draw every report of a benchmark beside a guide page, and write its picture and its section into the page."""
    texts = []
    for stem, report in reports(name, results).items():
        picture = page.parent / f"{stem}.svg"
        draw(report, picture)
        notes = "\n".join(f"- {note}" for note in report.notes)
        raw = f"[Raw](../../benchmarks/results/{stem}.json)."
        texts.append(
            f"\n## {report.title}\n\n![{report.title}]({picture.name})\n\n{section(report)}\n\n{notes}\n- {raw}\n\n"
        )
    into(page, f"{name} --table", "".join(texts))


@contextlib.contextmanager
def drawn(path: Path, panels: int = 1, *, sharey: bool = True) -> Iterator[Sequence[Any]]:
    """Axes side by side to draw on; afterwards the file: equal bytes for equal numbers, text as text, on white."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    mpl.rcParams.update({"svg.hashsalt": path.stem, "svg.fonttype": "none"})
    figure, rows = pyplot.subplots(1, panels, figsize=(4.4 * panels, 3.6), sharey=sharey, squeeze=False)
    yield rows[0]
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, lowest and highest."""
    return statistics.fmean(values), min(values), max(values)


def with_bars(axis: Any, x: Sequence[float], ys: Sequence[Sequence[float]], **style: Any) -> None:
    """The mean of the values at each ``x``, with bars from the lowest to the highest."""
    spreads = [spread(values) for values in ys]
    means = [mean for mean, _, _ in spreads]
    bars = [[mean - low for mean, low, _ in spreads], [high - mean for mean, _, high in spreads]]
    axis.errorbar(x, means, yerr=bars, capsize=3, markersize=5, linewidth=1, **style)
