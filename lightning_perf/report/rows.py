"""What every renderer shows: one row per quantity, one cell per variant, and the sentences below the table."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lightning_perf.measuring import Interval, outliers

if TYPE_CHECKING:
    from lightning_perf.report.quantities import Quantity
    from lightning_perf.report.result import Report

Verdict = Literal["better", "worse", "unresolved"]
_COMPANIONS = {"memory": "memory", "quality": "metric"}


@dataclass(frozen=True)
class Cell:
    """One variant's value, and how it compares with the baseline (None in the baseline's own column)."""

    value: str
    comparison: str | None = None
    verdict: Verdict | None = None


@dataclass(frozen=True)
class Row:
    """One quantity over all variants; ``hint`` says which direction is better."""

    label: str
    hint: str
    cells: tuple[Cell, ...]


def headers(report: Report) -> list[str]:
    """Column titles, one per variant; each but the first names the baseline."""
    return [name if name == report.baseline else f"{name} vs {report.baseline}" for name in report.variants]


def rows(report: Report) -> list[Row]:
    """All rows; a report of speeds gets a row for memory and for a metric even if nobody measured them."""
    table = [
        Row(
            quantity.label,
            f"{quantity.better} is better" if quantity.better else "",
            tuple(_cell(report, quantity, variant) for variant in report.variants),
        )
        for quantity in report.quantities
    ]
    kinds = {quantity.kind for quantity in report.quantities}
    if "speed" in kinds:
        empty = tuple(Cell("not measured: this comparison did not record it") for _ in report.variants)
        table += [Row(label, "", empty) for kind, label in _COMPANIONS.items() if kind not in kinds]
    return table


def _cell(report: Report, quantity: Quantity, variant: str) -> Cell:
    runs = report.runs_of(variant)
    values = [value for value in report.values(quantity.key, variant) if value is not None]
    if values:
        shown = quantity.text(statistics.median(values))
        if len(values) < len(runs):
            shown += f" ({len(values)} of {len(runs)} runs)"
    else:
        reasons = dict.fromkeys(run.why_missing(quantity.key) for run in runs)
        shown = f"not measured: {'; '.join(reasons)}"
    if variant == report.baseline or not values:
        return Cell(shown)
    interval = report.comparison(quantity.key, variant)
    if interval is None:
        reasons = dict.fromkeys(report.left_out(quantity.key, variant).values())
        return Cell(shown, f"not compared: {'; '.join(reasons)}")
    return Cell(shown, comparison_text(quantity, interval), verdict(report, quantity, interval))


def comparison_text(quantity: Quantity, interval: Interval) -> str:
    """A ratio as ``1.31x [1.27, 1.35]``; a difference in the unit of its quantity, percentages in points."""
    if quantity.compare == "ratio":
        return interval.text()
    unit = " points" if quantity.unit == "%" else f" {quantity.unit}".rstrip()
    return interval.text(quantity.digits, unit, quantity.scale, signed=True)


def verdict(report: Report, quantity: Quantity, interval: Interval) -> Verdict | None:
    """Whether the interval resolves a change, and in which direction; None for what is neither better nor worse."""
    if quantity.better is None:
        return None
    same = 1.0 if quantity.compare == "ratio" else 0.0
    change = interval.estimate - same
    blurred = (
        report.resolution is not None and quantity.kind == "speed" and abs(change) <= report.resolution.reach()
    ) and quantity.compare == "ratio"
    if not interval.excludes(same) or blurred:
        return "unresolved"
    upward = quantity.compare == "ratio" or quantity.better == "higher"
    return "better" if (change > 0) == upward else "worse"


def sentences(report: Report) -> list[str]:
    """What must be said below the table: how to read it, what was left out, what went wrong."""
    return [
        *_reading(report),
        *_left_out(report),
        *(f"{run.variant}, seed {run.seed}: failed: {run.error}" for run in report.runs if run.error is not None),
        *_outliers(report),
        *report.notes,
        *dict.fromkeys(f"{run.variant}: {note}" for run in report.runs for note in run.notes),
    ]


def reproduction(report: Report) -> list[str]:
    """One line per variant whose configuration is known."""
    return [f"{variant}: {path}" for variant, path in report.configs.items()]


def facts(report: Report) -> dict[str, str]:
    """Machine and versions, each as one line."""
    machine = {key: value for key, value in report.machine.items() if key != "memory_bytes"}
    memory = report.machine.get("memory_bytes")
    if isinstance(memory, (int, float)):
        machine["memory"] = f"{memory / 2**30:.0f} GiB"
    return {
        "machine": ", ".join(
            f"{key.replace('_', ' ')} {'none' if value is None else value}" for key, value in machine.items()
        ),
        "versions": ", ".join(f"{key} {value}" for key, value in report.versions.items()),
    }


def _reading(report: Report) -> Iterator[str]:
    intervals = [
        interval
        for quantity in report.quantities
        for variant in report.variants
        if (interval := report.comparison(quantity.key, variant)) is not None
    ]
    if intervals:
        levels = " or ".join(f"{level:.3g}%" for level in sorted({100 * interval.level for interval in intervals}))
        counts = sorted({interval.pairs or 0 for interval in intervals})
        pairs = " or ".join(map(str, counts)) + (" pair" if counts == [1] else " pairs")
        yield (
            f"Medians over runs; a comparison with {report.baseline} is the median over {pairs} of equal seed. So many "
            f"pairs allow intervals that hold the truth in {levels} of all cases. A ratio above 1 is better."
        )
    if report.resolution is not None:
        yield (
            f"Comparing equals showed {report.resolution.text(digits=3)}: "
            f"a speed that differs by less than {report.resolution.reach():.1%} is not resolved here."
        )


def _left_out(report: Report) -> Iterator[str]:
    for quantity in report.quantities:
        for variant in report.variants:
            if variant == report.baseline or not any(
                value is not None for value in report.values(quantity.key, variant)
            ):
                continue
            for seed, reason in report.left_out(quantity.key, variant).items():
                yield f"{quantity.label}, {variant}: the pair of seed {seed} is left out ({reason})."


def _outliers(report: Report) -> Iterator[str]:
    for variant in report.variants:
        counts: dict[str, tuple[int, int]] = {}
        for run in report.runs_of(variant):
            for name, samples in run.samples.items():
                far, total = counts.get(name, (0, 0))
                counts[name] = far + len(outliers(samples)), total + len(samples)
        for name, (far, total) in counts.items():
            if far:
                yield f"{variant}: {far} of {total} samples of {name} are outliers (over ten sigmas from the median)."
