"""Ranges against lists by hand."""

from __future__ import annotations

import pytest
import torch

from lightning_perf.quantization import observers
from lightning_perf.quantization.observers import Ranges, Samples, best_clip


def feed(ranges: Ranges, *batches: tuple[float, float]) -> None:
    for low, high in batches:
        ranges.observe(0, torch.tensor([low, high]))
        ranges.take_in()


def test_the_first_batches_count_alike_and_then_the_newest_counts_most() -> None:
    ranges = Ranges(["a"], averaging=0.5)
    feed(ranges, (-1, 4), (-3, 8))
    assert ranges.span("a") == (-2.0, 6.0)
    feed(ranges, (-4, 10))  # by thirds it would be (-2.67, 7.33); the average is exponential by now
    assert ranges.span("a") == (-3.0, 8.0)


def test_calls_within_a_batch_are_united() -> None:
    ranges = Ranges(["a", "b"])
    ranges.observe(0, torch.tensor([1.0, 2.0]))
    ranges.observe(0, torch.tensor([-5.0, 1.0]))
    ranges.observe(0, torch.tensor([0.0, 0.5]))
    assert ranges.span("a") is None
    ranges.take_in()
    assert ranges.span("a") == (-5.0, 2.0)
    assert ranges.span("b") is None
    assert ranges.known == [True, False]


def test_the_range_holds_zero() -> None:
    ranges = Ranges(["a"])
    feed(ranges, (2.0, 5.1))
    assert ranges.span("a") == (0.0, pytest.approx(5.1))
    assert ranges.parameters(0, torch.device("cpu")) == (pytest.approx(5.1 / 255), 0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_batches_that_are_not_finite_are_counted_and_left_out(value: float) -> None:
    ranges = Ranges(["a"])
    feed(ranges, (-1, 1), (0, value), (-1, 1))
    assert ranges.span("a") == (-1.0, 1.0)
    assert ranges.broken.tolist() == [1]
    assert ranges.batches.tolist() == [2]


def test_state_goes_by_name() -> None:
    ranges = Ranges(["a", "b"])
    feed(ranges, (-1, 1), (-2, 2))
    other = Ranges(["c", "a"])
    other.load(ranges.state())
    assert other.span("a") == ranges.span("a") == (-1.5, 1.5)
    assert other.known == [False, True]
    feed(ranges, (-9, 9))
    other.observe(1, torch.tensor([-9.0, 9.0]))
    other.take_in()
    assert other.span("a") == ranges.span("a")


def test_the_maximum_over_ranks_makes_ranges_equal() -> None:
    """Two ranks by hand: one saw the slot, the other saw another range or nothing at all."""
    batches = [{0: torch.tensor([-1.0, 3.0])}, {0: torch.tensor([-2.0, 1.0]), 1: torch.tensor([0.0, 7.0])}]
    seen: list[torch.Tensor] = []
    for batch in batches:
        ranges = Ranges(["a", "b"])
        for slot, x in batch.items():
            ranges.observe(slot, x)
        ranges.take_in(lambda ends: seen.append(ends.clone()) or ends)  # type: ignore[func-returns-value]
    together = torch.maximum(*seen)
    for batch in batches:
        ranges = Ranges(["a", "b"])
        for slot, x in batch.items():
            ranges.observe(slot, x)
        ranges.take_in(lambda ends: together)
        assert ranges.span("a") == (-2.0, 3.0)
        assert ranges.span("b") == (0.0, 7.0)


def test_clipping_is_the_best_of_all_candidates_by_hand() -> None:
    torch.manual_seed(0)
    values = torch.cat([torch.randn(5000), torch.tensor([9.0])])
    low, high = values.min(), values.max()

    def error(factor: float) -> float:
        scale = (high - low).item() * factor / 255
        zero = round(-low.item() * factor / scale)
        rounded = ((values / scale).round() + zero).clamp(0, 255).sub(zero) * scale
        return float((rounded - values).square().mean())

    clipped_low, clipped_high = best_clip(values, low, high)
    factor = (clipped_high / high).item()
    assert clipped_low / low == pytest.approx(factor)
    assert factor < 1
    assert error(factor) == pytest.approx(min(error(1 - 0.8 * step / 40) for step in range(40)), rel=1e-3)


def test_samples_are_bounded_and_spread() -> None:
    samples = Samples()
    for start in range(100):
        samples.add(torch.arange(start * 10_000, (start + 1) * 10_000, dtype=torch.float32))
    values = samples.values()
    assert 2**14 <= values.numel() <= 2**15
    assert values.min() < 10_000
    assert values.max() > 980_000


def test_an_earlier_state_knows_less_on_an_accelerator_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots that were known are asked for again after a load; else a range of nothing would round all to zero."""
    monkeypatch.setattr(observers, "_waits", lambda device: True)
    ranges = Ranges(["a"])
    before = ranges.state()
    ranges.observe(0, torch.tensor([-1.0, 3.0]))
    ranges.take_in()
    assert ranges.known == [True]
    after = ranges.state()
    ranges.load(before)
    assert ranges.known == [False]
    assert ranges.span("a") is None
    ranges.load(after)
    assert ranges.span("a") == (-1.0, 3.0)
