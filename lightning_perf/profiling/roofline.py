"""What this machine could reach, and how much of it a step uses: the roofline and model FLOPs utilization."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch

from lightning_perf import hardware
from lightning_perf.hardware import Rate
from lightning_perf.profiling.flop_count import FlopCount, quantity

_cache: dict[tuple[str, tuple[torch.dtype, ...], int, bool], Roofline] = {}


@dataclass(frozen=True)
class Roofline:
    """What a device reached in short probes.

    Args:
        device: its name, or "cpu".
        threads: torch's threads during the probes.
        peaks: dtype such as "float32" -> FLOP/s of matrix products.
        bandwidth: bytes per second read and written by copies.
        dispatch_seconds: least cost of calling one operator.
        notes: what a reader should know, such as that the machine was busy.

    Example::

        >>> roofline = Roofline("cpu", 1, {"float32": Rate(1e11, 1e11, 9)}, Rate(2e10, 2e10, 9), 1e-6)
        >>> roofline.attainable(1.0, torch.float32), roofline.attainable(50.0, "float32"), roofline.ridge("float32")
        (20000000000.0, 100000000000.0, 5.0)
    """

    device: str
    threads: int
    peaks: Mapping[str, Rate]
    bandwidth: Rate
    dispatch_seconds: float
    notes: tuple[str, ...] = ()

    def peak(self, dtype: torch.dtype | str) -> float | None:
        """Best measured FLOP/s of a dtype; None: not measured."""
        rate = self.peaks.get(dtype_name(dtype))
        return None if rate is None else rate.best

    def attainable(self, intensity: float, dtype: torch.dtype | str) -> float | None:
        """FLOP/s that this many FLOPs per byte allow: memory's slope up to the ridge, then the flat peak."""
        peak = self.peak(dtype)
        return None if peak is None else min(peak, intensity * self.bandwidth.best)

    def ridge(self, dtype: torch.dtype | str) -> float | None:
        """FLOPs per byte from which on the peak, not the memory, is the limit."""
        peak = self.peak(dtype)
        return None if peak is None else peak / self.bandwidth.best

    def sentence(self) -> str:
        """The probes in a line.

        Example::

            >>> Roofline("cpu", 1, {"float32": Rate(1e11, 1e11, 9)}, Rate(2e10, 2e10, 9), 1e-6).sentence()
            'cpu, 1 thread: float32 100 GFLOP/s, memory 20 GB/s, 1.0 us an operator.'
        """
        peaks = ", ".join(f"{name} {quantity(rate.best)}FLOP/s" for name, rate in self.peaks.items())
        threads = f"{self.threads} thread{'s' if self.threads != 1 else ''}"
        text = f"{self.device}, {threads}: {peaks}, memory {quantity(self.bandwidth.best)}B/s, "
        text += f"{self.dispatch_seconds * 1e6:.1f} us an operator."
        return " ".join([text, *self.notes])


def measure_roofline(
    device: torch.device | str = "cpu",
    dtypes: Iterable[torch.dtype] = (torch.float32, torch.bfloat16, torch.float16),
    threads: int | None = None,
    *,
    clock: Callable[[], float] | None = None,
) -> Roofline:
    """Measure matrix products by dtype, memory bandwidth and dispatch cost in about 1.5 seconds.

    The result is kept for this process, per device, dtypes, threads and TF32 setting. A probe takes up to 512 MB for a
    moment. Best of many short slices: on a busy machine these are lower bounds, and ``notes`` say so.

    Args:
        device: where to measure.
        dtypes: dtypes of the products; one that torch cannot multiply here is left out.
        threads: torch's threads for the probes; default: as they are set.
        clock: seconds; one that is given is used without the cache.

    Raises:
        ValueError: ``threads`` below 1, or no dtypes.

    Example::

        >>> measure_roofline(dtypes=[torch.float32]).peak(torch.float32) > 0
        True
    """
    device, dtypes = torch.device(device), tuple(dtypes)
    if not dtypes or (threads is not None and threads < 1):
        raise ValueError(f"dtypes={dtypes!r}, threads={threads!r}: give at least one dtype, and 1 thread or more.")
    count = torch.get_num_threads() if threads is None else threads
    key = (str(device), dtypes, count, hardware.tf32_is_on())
    if clock is not None:
        return _measure(device, dtypes, count, clock)
    if key not in _cache:
        _cache[key] = _measure(device, dtypes, count, time.perf_counter)
    return _cache[key]


def _measure(
    device: torch.device, dtypes: tuple[torch.dtype, ...], threads: int, clock: Callable[[], float]
) -> Roofline:
    budget = 0.9 / len(dtypes)
    with hardware.torch_threads(threads):
        rates = {d: hardware.measure_matmul(d, device=device, budget_seconds=budget, clock=clock) for d in dtypes}
        bandwidth = hardware.measure_bandwidth(device=device, clock=clock)
        dispatch = hardware.dispatch_seconds(device=device, clock=clock)
    peaks = {dtype_name(dtype): rate for dtype, rate in rates.items() if rate is not None}
    notes = []
    busy = [name for name, rate in {**peaks, "memory": bandwidth}.items() if rate.is_busy]
    if busy:
        notes.append(
            f"The machine was busy ({', '.join(busy)}: median below 70 % of the best), so these are lower bounds."
        )
    if device.type == "cuda" and "float32" in peaks:
        notes.append(f"float32 products ran in {'TF32' if hardware.tf32_is_on() else 'full precision'}.")
    return Roofline(device_name(device), threads, peaks, bandwidth, dispatch, tuple(notes))


@dataclass(frozen=True)
class Mfu:
    """Model FLOPs utilization: the part of a step's time that its FLOPs would take at the peak.

    Args:
        vendor: against the vendor's dense peak; None: see ``reasons``.
        measured: against the measured roofline; None: see ``reasons``.
        reasons: why one is missing, and what to know about one that is there.
    """

    vendor: float | None
    measured: float | None
    reasons: tuple[str, ...] = field(default=())


def mfu(
    flops_per_step: FlopCount | Mapping[str, int] | float,
    seconds_per_step: float,
    device: torch.device | str,
    dtype: torch.dtype | str | None = None,
    roofline: Roofline | None = None,
) -> Mfu:
    """How much of the device a step uses, against the vendor's dense peak and against the measured one.

    With FLOPs of several dtypes, each is held against its own peak: the utilization is the sum of the times that they
    would take, over the time that the step took. Recomputation is no FLOP of the model and does not raise it.

    Args:
        flops_per_step: a count, or model FLOPs by dtype, or their number if ``dtype`` is given.
        seconds_per_step: what one step takes on this device, measured without counting.
        device: "cpu", "cuda:0", ..., or a device's exact name.
        dtype: of the products, if ``flops_per_step`` is a number.
        roofline: measured peaks.

    Raises:
        ValueError: a time that is not positive, or a number without ``dtype``.

    Example::

        >>> mfu(156e12, 1.0, "NVIDIA A100-SXM4-80GB", torch.bfloat16).vendor
        0.5
        >>> mfu(1e12, 1.0, "cpu", torch.float32).reasons[0]
        "no vendor's peak: 'cpu' is not in the table of devices"
    """
    if not seconds_per_step > 0:
        raise ValueError(f"seconds_per_step={seconds_per_step!r} must be positive: the measured time of one step.")
    reasons = []
    if isinstance(flops_per_step, FlopCount):
        parts: Mapping[str, float] = flops_per_step.by_dtype
        if flops_per_step.uncounted:
            reasons.append(f"a lower bound: no formula is known for {', '.join(flops_per_step.uncounted)}")
    elif isinstance(flops_per_step, Mapping):
        parts = flops_per_step
    elif dtype is not None:
        parts = {dtype_name(dtype): flops_per_step}
    else:
        raise ValueError(
            f"flops_per_step={flops_per_step!r} needs dtype=, such as torch.bfloat16; or pass a FlopCount."
        )
    if not sum(parts.values()):
        return Mfu(None, None, (*reasons, "no FLOPs were counted"))
    name = device_name(device)

    def vendor(part: str) -> tuple[float | None, str]:
        kind = getattr(torch, part, None)
        if not isinstance(kind, torch.dtype):
            return None, f"{part!r} is no dtype of torch"
        return hardware.vendor_peak(name, kind, tf32=hardware.tf32_is_on())

    def measured(part: str) -> tuple[float | None, str]:
        peak = None if roofline is None else roofline.peak(part)
        return peak, "no roofline was measured" if roofline is None else f"no {part} product was measured"

    results = []
    for against, peak_of in (("vendor's", vendor), ("measured", measured)):
        ideal: float | None = 0.0
        for part, flops in parts.items():
            peak, why = peak_of(part)
            if peak is None:
                reasons.append(f"no {against} peak: {why}")
                ideal = None
                break
            ideal += flops / peak
        results.append(None if ideal is None else ideal / seconds_per_step)
    if results[1] is not None and results[1] > 1:
        reasons.append(
            f"no measured peak: the step ran at {results[1]:.1f} times the speed of the probes, which were disturbed; "
            "measure again when the machine is idle"
        )
        results[1] = None
    return Mfu(results[0], results[1], tuple(reasons))


def device_name(device: torch.device | str) -> str:
    """The exact name of a device, as the table of devices has it; "cpu" and others are their own names."""
    if isinstance(device, str) and hardware.find_device(device) is not None:
        return device
    device = torch.device(device)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def dtype_name(dtype: torch.dtype | str) -> str:
    """``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")
