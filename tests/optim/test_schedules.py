"""Schedules against lists written by hand and against torch's own schedulers."""

from __future__ import annotations

import doctest
import math
import types

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, LRScheduler, OneCycleLR

from lightning_perf.optim import schedules
from lightning_perf.optim.schedules import get_schedule, list_schedules, make_factor, resolve_warmup

COMPUTED = [row.name for row in list_schedules() if row.name != "keep"]


def values(name: str, total: int, warmup: float | int, steps: int | None = None) -> list[float]:
    factor = make_factor(name, total, warmup)
    return [factor(step) for step in range(total if steps is None else steps)]


def learning_rates(scheduler: LRScheduler, steps: int) -> list[float]:
    rates = []
    for _ in range(steps):
        rates.append(float(scheduler.get_last_lr()[0]))
        scheduler.optimizer.step()
        scheduler.step()
    return rates


def optimizer() -> SGD:
    return SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)


def test_examples() -> None:
    assert doctest.testmod(schedules).failed == 0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("constant", [1.0] * 10),
        ("warmup_linear", [0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        ("warmup_cosine", [0.5, 1.0, 1.0, 0.961940, 0.853553, 0.691342, 0.5, 0.308658, 0.146447, 0.038060]),
        ("wsd", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5]),
        ("one_cycle", [0.04, 1.0, 0.961940, 0.853554, 0.691343, 0.500002, 0.308661, 0.146450, 0.038064, 0.000004]),
    ],
)
def test_literal_values(name: str, expected: list[float]) -> None:
    assert values(name, total=10, warmup=2) == pytest.approx(expected, abs=1e-6)


def test_wsd_falls_over_the_last_fifth() -> None:
    assert values("wsd", total=20, warmup=0)[-6:] == pytest.approx([1.0, 1.0, 1.0, 0.75, 0.5, 0.25])


def test_wsd_with_a_warmup_into_the_fall_stays_below_both() -> None:
    assert values("wsd", total=10, warmup=9) == pytest.approx([k / 9 for k in range(1, 9)] + [1.0, 0.5])


def test_linear_equals_torch() -> None:
    torch_rates = learning_rates(LinearLR(optimizer(), 1.0, 0.0, total_iters=12), 12)
    assert values("warmup_linear", total=12, warmup=0) == pytest.approx(torch_rates)


def test_cosine_equals_torch() -> None:
    torch_rates = learning_rates(CosineAnnealingLR(optimizer(), T_max=12), 12)
    assert values("warmup_cosine", total=12, warmup=0) == pytest.approx(torch_rates)


@pytest.mark.parametrize(("total", "share"), [(10, 0.3), (40, 0.25), (100, 0.3), (50, 0.5)])
def test_one_cycle_equals_torch(total: int, share: float) -> None:
    scheduler = OneCycleLR(optimizer(), max_lr=1.0, total_steps=total, pct_start=share, cycle_momentum=False)
    assert values("one_cycle", total, share) == pytest.approx(learning_rates(scheduler, total), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", COMPUTED)
@pytest.mark.parametrize("total", [1, 2, 3, 7, 100])
def test_every_step_has_a_factor_in_zero_to_one(name: str, total: int) -> None:
    for warmup in (0, 0.05, 0.3, total - 1):
        got = values(name, total, warmup)
        assert all(0.0 < factor <= 1.0 for factor in got), (warmup, got)
        if warmup != total - 1:  # such a long warm-up meets the fall of wsd below the peak
            assert max(got) == 1.0


@pytest.mark.parametrize(
    ("name", "last"), [("warmup_linear", 0.0), ("warmup_cosine", 0.0), ("wsd", 0.0), ("one_cycle", 4e-6)]
)
def test_the_end_is_held(name: str, last: float) -> None:
    assert values(name, total=10, warmup=2, steps=40)[10:] == pytest.approx([last] * 30, abs=1e-12)


def test_constant_needs_no_total() -> None:
    assert [make_factor("constant", total, 0.05)(3) for total in (None, math.inf, 10)] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("name", [name for name in COMPUTED if name != "constant"])
@pytest.mark.parametrize("total", [None, math.inf, math.nan, -1])
def test_unknown_total_is_refused(name: str, total: float | None) -> None:
    with pytest.raises(ValueError, match=rf"schedule='{name}'.*it is {total}.*max_steps"):
        make_factor(name, total, 0.05)


def test_no_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="has 0; train longer"):
        make_factor("wsd", 0, 0.05)


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(ValueError, match=r"'cosine'.*constant, keep, one_cycle, warmup_cosine, warmup_linear, wsd"):
        get_schedule("cosine")
    with pytest.raises(ValueError, match=r"Did you mean 'warmup_linear'\?"):
        make_factor("warmup_linaer", 10, 0)


def test_keep_is_known_but_has_no_factor() -> None:
    assert get_schedule("keep").factor is None
    with pytest.raises(ValueError, match="keep"):
        make_factor("keep", 10, 0)


@pytest.mark.parametrize(
    ("warmup", "total", "steps"), [(0.05, 1000, 50), (0, 10, 0), (0.0, 10, 0), (9, 10, 9), (0.3, 10, 3), (0.99, 10, 9)]
)
def test_resolved_warmup(warmup: float, total: int, steps: int) -> None:
    assert resolve_warmup(warmup, total) == steps


@pytest.mark.parametrize(
    ("warmup", "words"),
    [
        (-0.1, r"warmup=-0.1 .*\[0, 1\)"),
        (math.nan, "warmup=nan"),
        (math.inf, "warmup=inf"),
        (True, "warmup=True"),
        ("5", "warmup='5'"),
        (500.0, "as an int, such as 500"),
        (1.0, "below 1"),
        (10, "fewer than the 10 optimizer steps"),
    ],
)
def test_wrong_warmup(warmup: float, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        resolve_warmup(warmup, 10)


def test_a_resumed_run_with_more_steps_follows_the_new_total() -> None:
    """LambdaLR must save nothing of the factor, or the old total would come back."""
    factor = make_factor("warmup_linear", 4, 0)
    assert isinstance(factor, types.FunctionType)
    first = LambdaLR(optimizer(), factor)
    learning_rates(first, 2)
    resumed = LambdaLR(optimizer(), make_factor("warmup_linear", 8, 0))
    resumed.load_state_dict(first.state_dict())
    resumed.optimizer.step()
    resumed.step()
    assert resumed.get_last_lr() == [pytest.approx(1 - 3 / 8)]
