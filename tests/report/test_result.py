"""Pairing, ratios, round trips and writing of a report."""

from __future__ import annotations

import dataclasses
import math
import pickle
import random
from pathlib import Path
from typing import Any

import pytest

from lightning_perf.report import (
    FINAL_METRIC,
    PEAK_MEMORY,
    Quantity,
    Report,
    Run,
    UnwritableReportError,
    html,
    json_text,
)


def test_variants_begin_with_the_baseline(report: Report) -> None:
    assert dataclasses.replace(report, baseline="fast").variants == ("fast", "plain")
    assert report.variants == ("plain", "fast")


def test_values_are_in_the_order_of_seeds_whatever_the_order_of_runs(report: Report) -> None:
    runs = [dataclasses.replace(run, position=-run.position) for run in report.runs]
    random.Random(0).shuffle(runs)
    shuffled = dataclasses.replace(report, runs=runs)
    assert shuffled.values("samples_per_second", "fast") == (200.0, 209.0, 252.0)
    assert shuffled.values("seconds_to_target", "fast") == (15.0, None, 15.0)


def test_ratios_are_paired_by_seed_and_above_one_is_better(report: Report) -> None:
    speed = report.ratio("samples_per_second", "fast")
    memory = report.ratio("peak_memory", "fast")
    assert speed is not None
    assert memory is not None
    assert (speed.low, speed.estimate, speed.high) == (1.9, 2.0, 2.1)
    assert (speed.level, speed.pairs) == (0.75, 3)
    assert memory.estimate == 0.8


def test_a_quantity_without_a_better_side_is_variant_over_baseline() -> None:
    runs = [Run(name, 0, quantities={"k": value}) for name, value in (("a", 2), ("b", 8))]
    ratio = Report("t", "a", runs, [Quantity("k", "k", "")]).ratio("k", "b")
    assert ratio is not None
    assert ratio.estimate == 4.0


def test_a_pair_with_a_missing_side_is_left_out_and_said(report: Report) -> None:
    ratio = report.ratio("seconds_to_target", "fast")
    assert ratio is not None
    assert (ratio.pairs, ratio.low, ratio.high) == (2, 2.0, 2.4)
    assert report.left_out("seconds_to_target", "fast") == {1: "fast: target 0.9 was not reached"}
    assert report.left_out("samples_per_second", "fast") == {}


def test_reasons_why_a_pair_is_missing() -> None:
    quantity = Quantity("k", "k", "s", better="lower")
    runs = [Run("a", seed, quantities={"k": 1.0}) for seed in range(6)] + [
        Run("b", 0, error="OutOfMemoryError: no\nsecond line"),
        Run("b", 1),
        Run("b", 2, quantities={"k": math.nan}),
        Run("b", 3, quantities={"k": 0.0}),
        Run("b", 4, quantities={"k": 2.0}),
        Run("b", 9, quantities={"k": 2.0}),
    ]
    report = Report("t", "a", runs, [quantity])
    assert report.left_out("k", "b") == {
        0: "b: the run failed: OutOfMemoryError: no",
        1: "b: this run did not record it",
        2: "b: its value is nan",
        3: "b: 0.0 has no ratio",
        5: "b: there is no run with this seed",
        9: "a: there is no run with this seed",
    }
    ratio = report.ratio("k", "b")
    assert ratio is not None
    assert (ratio.estimate, ratio.pairs) == (0.5, 1)


def test_differences_may_be_of_any_sign(report: Report) -> None:
    found = report.comparison("final_metric", "fast")
    assert found is not None
    assert found == report.difference("final_metric", "fast")
    assert (found.low, found.estimate, found.high) == pytest.approx((-0.01, 0.005, 0.005))


def test_a_difference_takes_values_that_have_no_ratio() -> None:
    runs = [Run("a", 0, quantities={"final_metric": -1.5}), Run("b", 0, quantities={"final_metric": 0.0})]
    report = Report("t", "a", runs, [FINAL_METRIC])
    found = report.comparison("final_metric", "b")
    assert found is not None
    assert found.estimate == 1.5
    assert report.left_out("final_metric", "b") == {}


def test_the_baseline_is_not_compared_with_itself(report: Report) -> None:
    assert report.ratio("samples_per_second", "plain") is None
    assert report.difference("final_metric", "plain") is None


def test_nothing_to_pair_is_none() -> None:
    report = Report("t", "a", [Run("a", 0), Run("b", 0)], [PEAK_MEMORY, FINAL_METRIC])
    assert report.comparison("peak_memory", "b") is None
    assert report.comparison("final_metric", "b") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"baseline": "none"}, r"baseline 'none' has no run; the variants are \['plain', 'fast'\]"),
        ({"runs": []}, "baseline 'plain' has no run"),
        ({"runs": [Run("plain", 1), Run("plain", 1)]}, "two runs of variant 'plain' with seed 1"),
        ({"quantities": [PEAK_MEMORY, PEAK_MEMORY]}, "listed twice"),
    ],
)
def test_bad_reports(report: Report, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(report, **change)


def test_unknown_names_list_the_known_ones(report: Report) -> None:
    with pytest.raises(ValueError, match=r"'speed'; this report has \['samples_per_second', "):
        report.ratio("speed", "fast")
    with pytest.raises(ValueError, match=r"'slow'; this report has \['plain', 'fast'\]"):
        report.values("peak_memory", "slow")


def test_json_round_trip_is_exact(report: Report, tmp_path: Path) -> None:
    generator = random.Random(1)
    odd = Run("fast", 7, quantities={"k": 0.1 + 0.2}, samples={"s": tuple(generator.random() for _ in range(100))})
    full = dataclasses.replace(report, runs=[*report.runs, odd], configs={"fast": "ünï/$float.yaml"})
    path = tmp_path / "new" / "report.json"
    text = full.to_json(path)
    assert Report.from_json(text) == full
    assert Report.from_json(path) == Report.from_json(str(path)) == full
    assert Report.from_json(text).to_json() == text
    assert pickle.loads(pickle.dumps(full)) == full


def test_json_is_strict_and_keeps_values_that_are_not_finite(report: Report) -> None:
    run = Run("fast", 7, quantities={"k": math.nan}, curves={"loss": ((0.0, math.inf), (1.0, -math.inf))})
    text = dataclasses.replace(report, runs=[*report.runs, run]).to_json()
    assert "NaN" not in text
    assert "Infinity" not in text
    back = Report.from_json(text).runs[-1]
    value = back.quantities["k"]
    assert value is not None
    assert math.isnan(value)
    assert back.curves["loss"] == ((0.0, math.inf), (1.0, -math.inf))


@pytest.mark.parametrize("text", ['{"a": 1}', "{"])
def test_what_is_no_report_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Report.from_json(text)


def test_containers_are_copied_into_plain_immutable_ones() -> None:
    run = Run("a", 0, quantities={"k": 1}, curves={"loss": [[0, 1]]}, samples={"s": [1, 2]})  # pyright: ignore
    assert run.curves == {"loss": ((0.0, 1.0),)}
    assert run.samples == {"s": (1.0, 2.0)}
    report = Report("t", "a", [run], [PEAK_MEMORY])
    assert report.runs == (run,)
    assert {"cpu", "gpu"} <= report.machine.keys()
    assert "torch" in report.versions


def test_to_yaml_copies_the_configuration(report: Report, tmp_path: Path) -> None:
    (tmp_path / "fast.yaml").write_text("trainer:\n  max_epochs: 1\n")
    known = dataclasses.replace(report, configs={"fast": str(tmp_path / "fast.yaml")})
    assert known.to_yaml(tmp_path / "out" / "copy.yaml", "fast").read_text() == "trainer:\n  max_epochs: 1\n"
    with pytest.raises(ValueError, match=r"'plain'; known are those of \['fast'\]"):
        known.to_yaml(tmp_path / "copy.yaml", "plain")


def test_an_unwritable_place_is_refused_before_rendering(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(html, "page", lambda report: pytest.fail("rendered before the check"))
    monkeypatch.setattr(json_text, "encode", lambda report: pytest.fail("rendered before the check"))
    for write in (report.to_html, report.to_json):
        with pytest.raises(UnwritableReportError):
            write(tmp_path / "file" / "report")
