"""Curves reduced by hand, and figures that leave matplotlib's global state alone."""

from __future__ import annotations

import dataclasses
import math
import sys
import warnings

import pytest

from lightning_perf.report import Report, plots


def test_thinned_by_hand() -> None:
    points = tuple((float(i), float(i * i)) for i in range(7))
    assert plots.thinned(points, most=7) == points
    assert plots.thinned(points, most=3) == ((1.0, 5 / 3), (4.0, 50 / 3), (6.0, 36.0))
    assert plots.thinned(()) == ()


def test_median_curve_by_hand() -> None:
    assert plots.median_curve([]) == ()
    assert plots.median_curve([((0.0, 1.0), (1.0, 5.0)), ((2.0, 3.0), (3.0, 4.0))]) == ((1.0, 2.0), (2.0, 4.5))
    ((_, value),) = plots.median_curve([((0.0, 1.0),), ((0.0, math.nan),), ((0.0, 2.0),)])
    assert math.isnan(value)


def test_one_plot_per_curve_and_per_way_of_comparing(report: Report) -> None:
    pytest.importorskip("matplotlib")
    captions = [caption for caption, _ in plots.plots(report)]
    assert captions == [
        "loss over seconds: single runs thin, their median bold",
        "Times better than plain, with interval: right of 1 is better",
        "Difference to plain, with interval",
    ]
    bars = plots.plots(report)[1][1]
    for part in ("training speed", "time to target", "peak memory", "2.00x", "2.20x", "0.80x"):
        assert part in bars
    assert "+0.50 points" in plots.plots(report)[2][1]
    assert plots.plots(report) == plots.plots(report)


def test_colours_come_from_the_page(report: Report) -> None:
    pytest.importorskip("matplotlib")
    for _, svg in plots.plots(report):
        assert "var(--ink)" in svg
        assert "var(--series-1)" in svg
        assert not any(colour in svg for colour in ("#fd000", "#fe00", "#000000"))


def test_a_report_without_curves_or_pairs_has_no_plots(report: Report) -> None:
    pytest.importorskip("matplotlib")
    runs = [dataclasses.replace(run, curves={}) for run in report.runs if run.variant == "plain"]
    assert plots.plots(dataclasses.replace(report, runs=runs)) == []


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_diverged_run_is_drawn_without_a_warning(report: Report, value: float) -> None:
    pytest.importorskip("matplotlib")
    runs = [dataclasses.replace(run, curves={"loss": ((0.0, 1.0), (1.0, value))}) for run in report.runs]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert plots.plots(dataclasses.replace(report, runs=runs))


def test_settings_are_restored_and_pyplot_is_not_needed(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    before = dict(matplotlib.rcParams)
    assert plots.plots(report)
    assert dict(matplotlib.rcParams) == before
