"""What the table says: companions of speed, missing values, verdicts, and the sentences below."""

from __future__ import annotations

import dataclasses

import pytest
from rich.console import Console

from lightning_perf.measuring import Interval
from lightning_perf.report import FINAL_ACCURACY, FINAL_METRIC, PEAK_MEMORY, SAMPLES_PER_SECOND, Report, Run, rows


def test_headers_name_the_baseline(report: Report) -> None:
    assert rows.headers(report) == ["plain", "fast vs plain"]


def test_cells(report: Report) -> None:
    speed, target, metric, memory = rows.rows(report)
    assert speed.cells == (rows.Cell("110 samples/s"), rows.Cell("209 samples/s", "2.00x [1.90, 2.10]", "better"))
    assert target.cells[1] == rows.Cell("15.0 s (2 of 3 runs)", "2.20x [2.00, 2.40] (range of 2 pairs)", "unresolved")
    assert metric.cells == (
        rows.Cell("91.00%"),
        rows.Cell("90.50%", "+0.50 points [-1.00, +0.50]", "unresolved"),
    )
    assert memory.cells[1] == rows.Cell("500 MB", "0.80x [0.80, 0.80]", "worse")
    assert (speed.hint, memory.hint) == ("higher is better", "lower is better")


def test_speed_never_stands_alone() -> None:
    runs = [Run("a", 0, quantities={"samples_per_second": 1.0})]
    alone = Report("t", "a", runs, [SAMPLES_PER_SECOND])
    assert [row.label for row in rows.rows(alone)] == ["training speed", "memory", "metric"]
    assert rows.rows(alone)[1].cells[0].value.startswith("not measured: ")
    together = dataclasses.replace(alone, quantities=[SAMPLES_PER_SECOND, PEAK_MEMORY, FINAL_METRIC])
    assert len(rows.rows(together)) == 3
    assert len(rows.rows(dataclasses.replace(alone, quantities=[PEAK_MEMORY]))) == 1


def test_a_missing_metric_says_why() -> None:
    runs = [
        Run("a", 0, missing={"final_metric": "'val_f1' was not logged; logged were ['loss']"}),
        Run("b", 0, quantities={"final_metric": 0.5}),
    ]
    (row,) = rows.rows(Report("t", "a", runs, [FINAL_METRIC]))
    assert row.cells[0].value == "not measured: 'val_f1' was not logged; logged were ['loss']"
    assert row.cells[1].comparison == "not compared: a: 'val_f1' was not logged; logged were ['loss']"


@pytest.mark.parametrize(
    ("quantity", "interval", "verdict"),
    [
        (SAMPLES_PER_SECOND, Interval(1.2, 1.1, 1.3), "better"),
        (SAMPLES_PER_SECOND, Interval(0.8, 0.7, 0.9), "worse"),
        (SAMPLES_PER_SECOND, Interval(1.2, 0.9, 1.3), "unresolved"),
        # Inside what a comparison of equals showed (3 %), although the interval excludes 1.
        (SAMPLES_PER_SECOND, Interval(1.02, 1.01, 1.03), "unresolved"),
        (PEAK_MEMORY, Interval(1.02, 1.01, 1.03), "better"),
        (FINAL_ACCURACY, Interval(0.02, 0.01, 0.03), "better"),
        (dataclasses.replace(FINAL_METRIC, better="lower"), Interval(0.02, 0.01, 0.03), "worse"),
        (dataclasses.replace(FINAL_METRIC, better="lower"), Interval(-0.02, -0.03, -0.01), "better"),
        (dataclasses.replace(FINAL_METRIC, better=None), Interval(0.02, 0.01, 0.03), None),
    ],
)
def test_verdicts(report: Report, quantity: rows.Quantity, interval: Interval, verdict: str | None) -> None:
    assert rows.verdict(report, quantity, interval) == verdict


def test_sentences_say_what_a_reader_must_know(report: Report) -> None:
    failed = Run("fast", 9, error="boom")
    stalled = Run("plain", 9, samples={"step_seconds": (0.01, 0.011, 0.0105, 0.01, 2.0)})
    said = rows.sentences(dataclasses.replace(report, runs=[*report.runs, failed, stalled]))
    assert any("2 or 3 pairs of equal seed" in line and "in 50% or 75% of" in line for line in said)
    assert (
        "Comparing equals showed 1.000x [0.970, 1.020]: a speed that differs by less than 3.0% is not resolved here."
        in said
    )
    assert "time to target, fast: the pair of seed 1 is left out (fast: target 0.9 was not reached)." in said
    assert "fast, seed 9: failed: boom" in said
    assert "plain: 1 of 17 samples of step_seconds are outliers (over ten sigmas from the median)." in said
    assert "The machine was quiet." in said
    assert said.count("fast: memory format changed") == 1


def test_the_table_in_the_terminal(report: Report) -> None:
    text = dataclasses.replace(report, configs={"fast": "fast.yaml"}).table(width=120)
    lines = text.splitlines()
    assert lines[0] == "two variants"
    assert max(map(len, lines)) <= 120
    assert any("training speed" in line and "110 samples/s" in line and "209 samples/s" in line for line in lines)
    for part in ("fast vs plain", "2.00x [1.90, 2.10]", "Reproduce fast: fast.yaml", "gpu none", "memory 8 GiB"):
        assert part in text
    assert "\x1b" not in text


def test_names_are_no_markup(report: Report) -> None:
    runs = [dataclasses.replace(run, variant="[red]x[/red]") if run.variant == "fast" else run for run in report.runs]
    named = dataclasses.replace(report, runs=runs, title="[bold]t")
    assert "[red]x[/red] vs plain" in named.table(width=200)
    console = Console(width=200, record=True, file=None, quiet=True)
    with console.capture() as captured:
        console.quiet = False
        console.print(named)
    assert "[bold]t" in captured.get()
    assert str(named).startswith("[bold]t")


def test_many_variants_stand_below_each_other(report: Report) -> None:
    """With more variants than fit side by side every value stays readable in 120 columns."""
    runs = [
        dataclasses.replace(run, variant=f"variant number {index}" if run.variant == "fast" else "plain", seed=run.seed)
        for index in range(9)
        for run in report.runs
        if run.variant == "fast" or index == 0
    ]
    lines = dataclasses.replace(report, runs=runs).table(width=120).splitlines()
    assert any("vs plain" in line for line in lines[:5])
    for index in range(9):
        (line,) = (line for line in lines if line.strip().startswith(f"variant number {index} "))
        assert line.split("variant number")[1].split()[1:3] == ["209", "samples/s"]
    assert any("2.00x [1.90, 2.10]" in line for line in lines)
    alike = [dataclasses.replace(run, quantities={**run.quantities, "peak_memory": None}) for run in runs]
    text = dataclasses.replace(report, runs=alike).table(width=120)
    assert text.count("not measured") == 1
