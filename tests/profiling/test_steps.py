"""Step statistics against hand-written numbers: rates, percentiles, bounded memory, stalls, the slowest rank."""

from __future__ import annotations

import pytest

from lightning_perf.profiling import steps as module
from lightning_perf.profiling.steps import StepStatistics, slowest_rank


def test_rates_and_percentiles() -> None:
    steps = StepStatistics()
    for index in range(100):
        steps.add(0.01 * (index + 1), samples=4, tokens=40)
    assert steps.count == 100
    assert steps.seconds == pytest.approx(50.5)
    assert steps.samples_per_second() == pytest.approx(400 / 50.5)
    assert steps.tokens_per_second() == pytest.approx(4000 / 50.5)
    assert [steps.percentile(share) for share in (0.0, 0.5, 0.9, 0.99)] == pytest.approx([0.01, 0.51, 0.91, 1.0])


def test_one_unknown_batch_makes_the_rate_unknown() -> None:
    steps = StepStatistics()
    steps.add(1.0, samples=4, tokens=None)
    steps.add(1.0, samples=None, tokens=None)
    assert steps.samples_per_second() is None
    assert steps.tokens_per_second() is None
    assert StepStatistics().percentile(0.5) is None


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last steps are kept, in a ring; the count goes on."""
    monkeypatch.setattr(module, "_KEPT", 5)
    steps = StepStatistics()
    for value in range(12):
        steps.add(float(value), 1, None)
    assert sorted(steps.times()) == [7, 8, 9, 10, 11]
    assert steps.count == 12


def test_a_stall_names_the_phase_that_grew() -> None:
    steps = StepStatistics()
    stalled = [steps.add(0.1, 1, None) for _ in range(64)]
    assert not any(stalled)
    assert not steps.add(0.29, 1, None)
    assert steps.add(0.5, 1, None)
    steps.stalled(0.5, before=[1.0, 1.0], after=[1.05, 1.4, 0.05], names=["forward", "data wait", "checkpoint"])
    (stall,) = steps.stalls
    assert (stall.step, stall.seconds, stall.typical, stall.phase) == (66, 0.5, 0.1, "data wait")


def test_the_longest_stalls_are_kept() -> None:
    steps = StepStatistics()
    for index in range(30):
        steps.stalled(float(index), [0.0], [1.0], ["forward"])
    assert [stall.seconds for stall in steps.stalls] == [29, 28, 27, 26, 25, 24, 23, 22, 21, 20]


@pytest.mark.parametrize(
    ("own", "slowest"), [([1.0], None), ([1.0, 1.04], None), ([1.0, 1.2], 1), ([2.0, 1.0, 1.0, 1.1], 0), ([], None)]
)
def test_slowest_rank(own: list[float], slowest: int | None) -> None:
    assert slowest_rank(own) == slowest
