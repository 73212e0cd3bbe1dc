"""The probes on a fake clock: what they choose, how long they take, what they report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_perf import hardware
from lightning_perf.hardware import Rate, probes


class FakeClock:
    """A clock that a product of side n advances by n**3 times ``seconds_per_product``, and its first call by ``first``."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, seconds_per_product: float, first: float = 0.0, overhead: float = 0.0
    ) -> None:
        self.now, self._first, self._cost, self._overhead = 0.0, first, seconds_per_product, overhead
        self.sides: list[int] = []
        monkeypatch.setattr(torch, "mm", self._mm)

    def _mm(self, left: torch.Tensor, right: torch.Tensor) -> None:
        self.now += self._overhead + left.shape[0] ** 3 * self._cost + (self._first if not self.sides else 0.0)
        self.sides.append(left.shape[0])

    def __call__(self) -> float:
        return self.now


def test_the_rate_is_that_of_the_full_size(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock(monkeypatch, seconds_per_product=2e-11)
    assert hardware.matmul_rate(torch.float32, size=256, clock=clock) == pytest.approx(1e11)
    assert clock.sides.count(64) == 1
    assert clock.sides.count(256) > 100
    assert clock.now < 0.25


def test_an_emulated_dtype_cannot_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock(monkeypatch, seconds_per_product=2e-7)
    assert hardware.matmul_rate(torch.float16, size=1024, clock=clock) == pytest.approx(1e7)
    assert set(clock.sides) == {64}
    assert clock.now < 0.2


def test_a_slow_first_call_does_not_make_a_fast_dtype_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock(monkeypatch, seconds_per_product=2e-11, first=0.05)
    assert hardware.matmul_rate(torch.float32, size=256, clock=clock) == pytest.approx(1e11)


def test_the_probe_leaves_the_users_random_numbers_alone() -> None:
    state = torch.get_rng_state()
    assert hardware.matmul_rate(torch.float32, size=64, budget_seconds=0.001)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_dtype_without_a_product_has_no_rate() -> None:
    assert hardware.matmul_rate(torch.bool, size=64, budget_seconds=0.001) is None


@pytest.mark.parametrize(("size", "budget"), [(32, 0.1), (64, 0.0)])
def test_bad_arguments_of_the_probe(size: int, budget: float) -> None:
    with pytest.raises(ValueError, match=f"size={size}, budget_seconds={budget}"):
        hardware.matmul_rate(torch.float32, size=size, budget_seconds=budget)


def test_the_size_grows_until_a_product_fills_a_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock(monkeypatch, seconds_per_product=2e-11, first=0.05)
    rate = hardware.measure_matmul(torch.float32, clock=clock)
    assert rate is not None
    assert rate.best == pytest.approx(1e11)
    assert rate.median == pytest.approx(1e11)
    assert clock.sides[-1] == 512  # 2.7 ms; the next would take 21
    assert clock.sides.count(512) == rate.slices + 2
    assert clock.now < 0.05 + 0.26


def test_an_emulated_dtype_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock(monkeypatch, seconds_per_product=2e-7)
    rate = hardware.measure_matmul(torch.float16, clock=clock)
    assert rate is not None
    assert rate.best == pytest.approx(1e7)
    assert set(clock.sides) == {64}
    assert clock.now < 0.6


def test_waiting_for_threads_is_not_taken_for_a_slow_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve milliseconds for any product: at the smallest size that would be 2000 times too slow."""
    clock = FakeClock(monkeypatch, seconds_per_product=2e-11, overhead=0.012)
    rate = hardware.measure_matmul(torch.float32, clock=clock)
    assert rate is not None
    assert rate.best > 0.15e11
    assert clock.now < 0.6


def test_a_dtype_without_a_product_is_left_out() -> None:
    assert hardware.measure_matmul(torch.bool, budget_seconds=0.001) is None


class Copies:
    """A clock that a copy advances by its bytes, every second one slower; remembers which memory was copied."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, bytes_per_second: float, slow: float = 1.0) -> None:
        self.now, self.addresses, self._speed, self._slow = 0.0, [], bytes_per_second, slow
        clock = self

        def copy_(target: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
            clock.addresses.append(source.data_ptr())
            seconds = 2 * source.numel() * source.element_size() / clock._speed
            clock.now += seconds * (clock._slow if len(clock.addresses) % 2 else 1.0)
            return target

        monkeypatch.setattr(torch.Tensor, "copy_", copy_)

    def __call__(self) -> float:
        return self.now


def test_bandwidth_walks_through_a_buffer_larger_than_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "_last_cache_bytes", lambda: 8 << 20)
    clock = Copies(monkeypatch, 20e9)
    rate = hardware.measure_bandwidth(clock=clock)
    assert rate.best == pytest.approx(20e9)
    assert not rate.is_busy
    chunks = (64 << 20) // (4 << 20)
    assert len(set(clock.addresses)) == chunks
    assert clock.addresses[:chunks] == clock.addresses[chunks : 2 * chunks]
    assert clock.now < 0.31


def test_a_busy_machine_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    rate = hardware.measure_bandwidth(clock=Copies(monkeypatch, 20e9, slow=3.0))
    assert rate.best == pytest.approx(20e9)
    assert rate.is_busy
    assert not Rate(100.0, 71.0, 5).is_busy


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [({"index0": "32K", "index3": "32M"}, 32 << 20), ({"index2": "1024K"}, 1 << 20), ({"index0": ""}, 0), ({}, 0)],
)
def test_the_last_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sizes: dict[str, str], expected: int) -> None:
    for name, size in sizes.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "size").write_text(size + "\n")
    monkeypatch.setattr(probes, "_CACHE_SIZES", tmp_path)
    assert probes._last_cache_bytes() == expected
    assert probes._buffer_bytes(torch.device("cpu")) == max(64 << 20, 2 * expected)


def test_dispatch_is_the_best_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def add(*_: Any) -> None:
        now[0] += 2e-6 if now[0] < 0.02 else 1e-6

    monkeypatch.setattr(torch, "add", add)
    assert hardware.dispatch_seconds(clock=lambda: now[0]) == pytest.approx(1e-6)
    assert now[0] < 0.06


@pytest.mark.parametrize(
    "probe",
    [
        lambda: hardware.measure_matmul(torch.float32, budget_seconds=0.001),
        lambda: hardware.measure_bandwidth(budget_seconds=0.001),
        lambda: hardware.dispatch_seconds(budget_seconds=0.001),
    ],
)
def test_probes_draw_no_random_numbers(probe: Callable[[], Any]) -> None:
    state = torch.get_rng_state()
    assert probe()
    assert torch.equal(torch.get_rng_state(), state)
