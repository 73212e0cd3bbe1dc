"""The arithmetic of a race against lists by hand."""

from __future__ import annotations

import math

import pytest

from lightning_perf.autopilot.halving import (
    Budget,
    Cost,
    Pace,
    affordable_sizes,
    finalist_seconds,
    pace_of,
    pace_within,
    parse_budget,
    runs_per_rung,
    seconds_needed,
    seconds_to,
    shares,
    sizes,
    sizes_for_steps,
    survivors,
)


@pytest.mark.parametrize(
    ("text", "seconds", "steps"),
    [
        ("10m", 600.0, None),
        ("90s", 90.0, None),
        ("1h", 3600.0, None),
        ("1h30m", 5400.0, None),
        ("1.5 h", 5400.0, None),
        ("45", 45.0, None),
        (45, 45.0, None),
        (0.5, 0.5, None),
        ("500 steps", None, 500),
        ("1step", None, 1),
    ],
)
def test_budgets(text: str | float, seconds: float | None, steps: int | None) -> None:
    assert parse_budget(text) == Budget(seconds, steps)


@pytest.mark.parametrize("text", ["", "ten", "10 d", "0s", "0 steps", "-5", "1e3", "5m3", math.inf, math.nan, 0, True])
def test_no_budgets(text: str | float) -> None:
    with pytest.raises(ValueError, match="is neither a time for the whole race"):
        parse_budget(text)


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, [1]), (3, [3]), (4, [4, 3]), (9, [9, 3]), (15, [15, 3]), (18, [18, 7, 3]), (27, [27, 9, 3])],
)
def test_sizes(count: int, expected: list[int]) -> None:
    assert sizes(count) == expected


def test_steps_leave_rungs_out_rather_than_starve_them() -> None:
    """18 candidates have 3 rungs, of which the first gets a ninth: 20 steps need 180 of a finalist."""
    assert sizes_for_steps(18, 180) == [18, 7, 3]
    assert sizes_for_steps(18, 179) == [18, 3]
    assert sizes_for_steps(18, 1) == [18, 3]
    assert sizes_for_steps(2, 1) == [2]


def test_shares_and_runs() -> None:
    assert shares(1) == [1.0]
    assert shares(3) == pytest.approx([1 / 9, 1 / 3, 1])
    assert runs_per_rung([18, 7, 3], seeds=3) == [19, 8, 12]
    assert runs_per_rung([2], seeds=5) == [15]


def test_finalist_seconds_spend_the_budget() -> None:
    """19 runs of 1/9, 8 of 1/3, 12 whole ones, 2 s each beside training: together 600 s again."""
    runs, parts = [19, 8, 12], shares(3)
    seconds = finalist_seconds(600.0, runs, parts, overhead=2.0)
    assert sum(count * (2.0 + part * seconds) for count, part in zip(runs, parts, strict=True)) == pytest.approx(600)
    assert finalist_seconds(70.0, runs, parts, overhead=2.0) == 0.0


def test_pace_within_seconds() -> None:
    """10 s, steps of 0.1 s, validations of 0.5 s: 5 validations are a quarter, so 4 wanted ones are affordable."""
    assert pace_within(10, Cost(0.1, 0.5), 4) == Pace(80, 4, 20)
    # 20 wanted, 5 affordable: (10 - 2.5) / 0.1 steps.
    assert pace_within(10, Cost(0.1, 0.5), 20) == Pace(75, 5, 20)
    # A validation alone takes longer than a quarter: one, at the end.
    assert pace_within(10, Cost(0.1, 8.0), 4) == Pace(20, 1, 20)
    # It takes longer than the run: one step all the same.
    assert pace_within(10, Cost(0.1, 80.0), 4) == Pace(1, 1, 20)
    assert pace_within(10, Cost(0.1, 0.5), 4, most_steps=30) == Pace(28, 4, 20)


def test_pace_of_steps() -> None:
    assert pace_of(500, 20) == Pace(500, 20, None)
    assert pace_of(7, 20) == Pace(7, 7, None)
    assert pace_of(0.4, 4) == Pace(1, 1, None)


def test_a_small_budget_takes_fewer_rungs_then_fewer_candidates() -> None:
    cost, overhead = Cost(0.1, 0.5), 5.0
    # A first rung of 20 steps and a validation is 2.5 s; a finalist of 3 rungs 22.5 s.
    assert seconds_needed([18, 7, 3], 3, cost, overhead) == pytest.approx(39 * 5 + 22.5 * (19 / 9 + 8 / 3 + 12))
    assert seconds_needed([18, 3], 3, cost, overhead) == pytest.approx(31 * 5 + 7.5 * (19 / 3 + 12))
    needed = seconds_needed([18, 7, 3], 3, cost, overhead)
    assert affordable_sizes(18, needed + 0.01, 3, cost, overhead) == [18, 7, 3]
    assert affordable_sizes(18, needed - 0.01, 3, cost, overhead) == [18, 3]
    assert affordable_sizes(18, 292.4, 3, cost, overhead) == [17, 3]
    assert affordable_sizes(18, 44.9, 3, cost, overhead) == []
    assert affordable_sizes(18, 45.1, 3, cost, overhead) == [1]


def test_survivors() -> None:
    scores = {"a": 0.7, "b": math.nan, "c": 0.9, "d": None, "e": 0.7, "f": math.inf, "g": 0.1}
    assert survivors(scores, 3, "max") == ["c", "a", "e"]
    assert survivors(scores, 2, "min") == ["g", "a"]
    assert survivors(scores, 9, "max") == ["c", "a", "e", "g"]
    assert survivors({"a": None}, 1, "max") == []


def test_seconds_to() -> None:
    curve = [(1.0, 0.9), (2.0, 0.5), (3.0, 0.7)]
    assert seconds_to(curve, 0.6, "min") == 2.0
    assert seconds_to(curve, 0.95, "max") is None
    assert seconds_to(curve, 0.9, "max") == 1.0
