"""Step statistics against hand-written numbers: rates, percentiles, bounded memory, stalls, the slowest rank."""

from __future__ import annotations

import pytest

from lightning_perf.profiling import steps as module
from lightning_perf.profiling.steps import StepStatistics, slowest_rank


def test_rates_and_percentiles() -> None:
    steps = StepStatistics()
    for index in range(100):
        steps.add([0.01 * (index + 1)])
    steps.add_samples(90, (4, 40))
    steps.add_samples(10, (4, 40))
    assert steps.count == 100
    assert steps.seconds == pytest.approx(50.5)
    assert steps.samples_per_second() == pytest.approx(400 / 50.5)
    assert steps.tokens_per_second() == pytest.approx(4000 / 50.5)
    assert [steps.percentile(share) for share in (0.0, 0.5, 0.9, 0.99)] == pytest.approx([0.01, 0.51, 0.91, 1.0])


def test_one_unknown_batch_makes_the_rate_unknown() -> None:
    steps = StepStatistics()
    steps.add([1.0, 1.0])
    steps.add_samples(1, (4, None))
    steps.add_samples(1, (None, None))
    assert steps.samples_per_second() is None
    assert steps.tokens_per_second() is None
    assert StepStatistics().percentile(0.5) is None


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last steps are kept, in a ring; the count goes on."""
    monkeypatch.setattr(module, "_KEPT", 5)
    steps = StepStatistics()
    for value in range(0, 12, 3):
        steps.add([value, value + 1.0, value + 2.0])
    assert sorted(steps.times()) == [7, 8, 9, 10, 11]
    assert steps.count == 12


def test_a_stall_names_the_phase_that_grew() -> None:
    steps = StepStatistics()
    assert steps.add([0.1] * 20 + [9.0] + [0.1] * 43) == []  # nothing to compare with yet
    assert steps.add([0.29]) == []
    assert steps.add([0.1, 0.5, 0.1]) == [(67, 0.5)]
    steps.stalled(67, 0.5, before=[1.0, 1.0], after=[1.05, 1.4, 0.05], names=["forward", "data wait", "checkpoint"])
    (stall,) = steps.stalls
    assert (stall.step, stall.seconds, stall.typical, stall.phase) == (67, 0.5, 0.1, "data wait")


def test_a_stall_among_usual_steps_since_the_last_look() -> None:
    """Forward grows by a second a step, data wait by 0.1; of five steps since the look one waited 2 seconds for data."""
    steps = StepStatistics()
    for _ in range(5):
        steps.add([1.1] * 21)
    steps.stalled(105, 3.0, before=[100.0, 10.0], after=[105.0, 12.4], names=["forward", "data wait"], steps=5)
    assert steps.stalls[0].phase == "data wait"


def test_the_longest_stalls_are_kept() -> None:
    steps = StepStatistics()
    for index in range(30):
        steps.stalled(index, float(index), [0.0], [1.0], ["forward"])
    assert [stall.seconds for stall in steps.stalls] == [29, 28, 27, 26, 25, 24, 23, 22, 21, 20]


@pytest.mark.parametrize(
    ("own", "slowest"), [([1.0], None), ([1.0, 1.04], None), ([1.0, 1.2], 1), ([2.0, 1.0, 1.0, 1.1], 0), ([], None)]
)
def test_slowest_rank(own: list[float], slowest: int | None) -> None:
    assert slowest_rank(own) == slowest
