"""The roofline from given rates, and utilization by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_perf import hardware
from lightning_perf.hardware import Rate
from lightning_perf.profiling import roofline as module
from lightning_perf.profiling.flop_count import FlopCount
from lightning_perf.profiling.roofline import Mfu, Roofline, measure_roofline, mfu

PEAKS = {"float32": Rate(100e9, 95e9, 50), "bfloat16": Rate(220e9, 210e9, 50)}
CPU = Roofline("cpu", 1, PEAKS, Rate(20e9, 18e9, 50), 1.5e-6)


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Probes that answer at once and note what they were asked, with how many threads."""
    calls: list[Any] = []

    def matmul(dtype: torch.dtype, **_: Any) -> Rate | None:
        calls.append((dtype, torch.get_num_threads()))
        return PEAKS.get(str(dtype).removeprefix("torch."))

    monkeypatch.setattr(module, "_cache", {})
    monkeypatch.setattr(hardware, "measure_matmul", matmul)
    monkeypatch.setattr(hardware, "measure_bandwidth", lambda **_: Rate(20e9, 5e9, 50))
    monkeypatch.setattr(hardware, "dispatch_seconds", lambda **_: 1.5e-6)
    return calls


def test_attainable_follows_the_slope_then_the_roof() -> None:
    assert CPU.attainable(0.5, torch.float32) == 10e9
    assert CPU.ridge(torch.float32) == 5.0
    assert CPU.attainable(5.0, "float32") == 100e9
    assert CPU.attainable(1e6, torch.bfloat16) == 220e9
    assert CPU.attainable(1.0, torch.float16) is None
    assert CPU.ridge("float16") is None


def test_what_is_measured(probes: list[Any]) -> None:
    found = measure_roofline(dtypes=[torch.float32, torch.bool, torch.bfloat16])
    assert found.peaks == PEAKS
    assert (found.device, found.threads, found.dispatch_seconds) == ("cpu", 1, 1.5e-6)
    assert found.notes == ("The machine was busy (memory: median below 70 % of the best), so these are lower bounds.",)
    assert found.sentence().startswith(
        "cpu, 1 thread: float32 100 GFLOP/s, bfloat16 220 GFLOP/s, memory 20 GB/s, 1.5 us"
    )


def test_threads_are_set_for_the_probes_and_put_back(probes: list[Any]) -> None:
    before = torch.get_num_threads()
    measure_roofline(dtypes=[torch.float32], threads=before + 1)
    assert probes == [(torch.float32, before + 1)]
    assert torch.get_num_threads() == before


def test_measured_once_per_process_and_number_of_threads(probes: list[Any]) -> None:
    first = measure_roofline(dtypes=[torch.float32])
    assert measure_roofline(dtypes=[torch.float32]) is first
    assert len(probes) == 1
    measure_roofline(dtypes=[torch.float32], threads=2)
    measure_roofline(dtypes=[torch.bfloat16])
    assert len(probes) == 3
    measure_roofline(dtypes=[torch.float32], clock=lambda: 0.0)
    assert len(probes) == 4


def test_all_probes_together_take_less_than_two_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that only the probed operators move: the budgets add up to less, emulated dtype included."""
    now = [0.0]

    def mm(left: torch.Tensor, right: torch.Tensor) -> None:
        now[0] += left.shape[0] ** 3 * (2e-7 if left.dtype == torch.float16 else 2e-11)

    def copy_(target: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        now[0] += 1e-3
        return target

    def add(*_: Any) -> None:
        now[0] += 1e-6

    monkeypatch.setattr(torch, "mm", mm)
    monkeypatch.setattr(torch, "add", add)
    monkeypatch.setattr(torch.Tensor, "copy_", copy_)
    found = measure_roofline(clock=lambda: now[0])
    assert found.peak(torch.float32) == pytest.approx(1e11)
    assert found.peak(torch.float16) == pytest.approx(1e7)
    assert 1.0 < now[0] < 2.0


@pytest.mark.parametrize(("dtypes", "threads"), [([], None), ([torch.float32], 0)])
def test_bad_arguments(dtypes: Any, threads: Any) -> None:
    with pytest.raises(ValueError, match="at least one dtype, and 1 thread or more"):
        measure_roofline(dtypes=dtypes, threads=threads)


def test_utilization_against_vendor_and_roofline() -> None:
    found = mfu(31.2e12, 0.5, "NVIDIA A100-SXM4-80GB", torch.bfloat16)
    assert found.vendor == pytest.approx(0.2)
    assert found.measured is None
    assert found.reasons == ("no measured peak: no roofline was measured",)
    found = mfu(50e9, 1.0, "cpu", torch.float32, CPU)
    assert found == Mfu(None, 0.5, ("no vendor's peak: 'cpu' is not in the table of devices",))


def test_each_dtype_is_held_against_its_own_peak() -> None:
    """Half a second at the peak of float32 and a tenth at that of bfloat16, in one second."""
    count = FlopCount(forward=30_000_000_000, backward=42_000_000_000, recompute=10**12)
    count = FlopCount(
        count.forward, count.backward, count.recompute, by_dtype={"float32": 50_000_000_000, "bfloat16": 22_000_000_000}
    )
    assert mfu(count, 1.0, "cpu", roofline=CPU).measured == pytest.approx(0.6)
    found = mfu(count, 1.0, "NVIDIA A100-SXM4-80GB", roofline=CPU)
    assert found.vendor == pytest.approx(50e9 / 19.5e12 + 22e9 / 312e12)


def test_tf32_decides_which_peak_of_float32_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        assert mfu(15.6e12, 1.0, "NVIDIA A100-SXM4-80GB", torch.float32).vendor == pytest.approx(0.1)
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    assert mfu(1.95e12, 1.0, "NVIDIA A100-SXM4-80GB", torch.float32).vendor == pytest.approx(0.1)


def test_ill_defined_utilization_is_none_with_a_reason() -> None:
    found = mfu({"float64": 10, "float32": 10}, 1.0, "NVIDIA H200", roofline=CPU)
    assert (found.vendor, found.measured) == (None, None)
    assert found.reasons == (
        "no vendor's peak: vendors state no rate for float64",
        "no measured peak: no float64 product was measured",
    )
    assert mfu(FlopCount(), 1.0, "cpu", roofline=CPU) == Mfu(None, None, ("no FLOPs were counted",))
    uncounted = FlopCount(forward=1, by_dtype={"float32": 1}, uncounted={"aten::_cdist_forward": 2})
    assert (
        mfu(uncounted, 1.0, "cpu", roofline=CPU).reasons[0]
        == "a lower bound: no formula is known for aten::_cdist_forward"
    )


def test_more_than_the_measured_peak_is_no_utilization() -> None:
    """A step that is faster than the probes says that the probes were disturbed, not that the machine is exceeded."""
    found = mfu(120e9, 1.0, "cpu", torch.float32, CPU)
    assert found.measured is None
    assert "1.2 times the speed of the probes" in found.reasons[-1]
    assert mfu(99e9, 1.0, "cpu", torch.float32, CPU).measured == pytest.approx(0.99)


def test_bad_arguments_of_utilization() -> None:
    with pytest.raises(ValueError, match=r"seconds_per_step=0.0 must be positive"):
        mfu(1.0, 0.0, "cpu", torch.float32)
    with pytest.raises(ValueError, match=r"flops_per_step=1.0 needs dtype="):
        mfu(1.0, 1.0, "cpu")
