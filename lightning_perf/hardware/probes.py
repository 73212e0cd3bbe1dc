"""Short measurements of what a device can do: matrix products, memory, dispatch. Many slices of a few milliseconds each.

A busy machine disturbs a short slice least, so the best slice says what the device can do, and how far the median lies
below it says how busy the machine was. No probe draws a random number.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch

Clock: TypeAlias = Callable[[], float]

_SLICE_SECONDS = 0.003
_SMALLEST_SIDE, _LARGEST_SIDE = 64, 8192
_BUSY = 0.7  # a median below this part of the best
_CACHE_SIZES = Path("/sys/devices/system/cpu/cpu0/cache")
_MEGABYTE = 1 << 20


@dataclass(frozen=True)
class Rate:
    """Something per second, measured in slices: FLOP/s or bytes/s.

    Args:
        best: the fastest slice.
        median: the middle one.
        slices: how many there were.

    Example::

        >>> Rate(best=100.0, median=60.0, slices=9).is_busy
        True
    """

    best: float
    median: float
    slices: int

    @property
    def is_busy(self) -> bool:
        """Whether the machine was doing something else: half of the slices were below 70 % of the best."""
        return self.median < _BUSY * self.best


def measure_matmul(
    dtype: torch.dtype,
    *,
    device: str | torch.device = "cpu",
    budget_seconds: float = 0.25,
    clock: Clock = time.perf_counter,
) -> Rate | None:
    """FLOP/s of square matrix products of this dtype, at the largest size whose product fits a slice of 3 ms.

    The size doubles from 64, so a dtype that the processor emulates (sixty times slower, or worse) stays small and costs
    no more time than the others. Where waiting for threads takes most of a product's time, it grows further. None: torch
    has no product of this dtype here.

    Example::

        >>> measure_matmul(torch.float32, budget_seconds=0.01).best > 0
        True
    """
    device = torch.device(device)
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        begin, side = clock(), _SMALLEST_SIDE
        try:
            product = _timed_product(dtype, side, device, clock)
            # The first call loads kernels, so it says nothing about the size.
            seconds = min(product() for _ in range(3))
        except NotImplementedError:
            return None
        growth = 1.0
        while side < _LARGEST_SIDE and clock() - begin < budget_seconds / 2:
            if 8 * seconds > _SLICE_SECONDS and (growth > 2 or seconds > budget_seconds / 16):
                break
            side *= 2
            product = _timed_product(dtype, side, device, clock)
            before, seconds = seconds, min(product() for _ in range(2))
            growth = seconds / before
        return _rate(product, 2.0 * side**3, budget_seconds, clock)


def measure_bandwidth(
    *,
    device: str | torch.device = "cpu",
    budget_seconds: float = 0.3,
    clock: Clock = time.perf_counter,
) -> Rate:
    """Bytes per second, read and written, of copies within a buffer that is larger than the last cache.

    A slice copies 4 MB of it (a GPU: all of it), walking on, so that no slice finds its data in a cache. What a processor
    reads before it writes (write-allocate) is not counted.

    Example::

        >>> measure_bandwidth(budget_seconds=0.01).best > 0
        True
    """
    device = torch.device(device)
    size = _buffer_bytes(device)
    chunk = min(size, 4 * _MEGABYTE) if device.type == "cpu" else size
    # Bytes as 32-bit numbers; filled, so that every page exists before the first slice.
    source = torch.ones(size // chunk, chunk // 4, dtype=torch.float32, device=device)
    target = torch.zeros_like(source)
    position = 0

    def copy() -> float:
        nonlocal position
        row = position % len(source)
        position += 1
        start = clock()
        target[row].copy_(source[row])
        _synchronize(device)
        return max(clock() - start, 1e-9)

    with torch.no_grad():
        copy()
        return _rate(copy, 2.0 * chunk, budget_seconds, clock)


def dispatch_seconds(
    *,
    device: str | torch.device = "cpu",
    budget_seconds: float = 0.05,
    clock: Clock = time.perf_counter,
) -> float:
    """What calling one operator costs at least, whatever it computes: the best of many slices of 100 small additions.

    Example::

        >>> 0 < dispatch_seconds(budget_seconds=0.005) < 1
        True
    """
    device = torch.device(device)
    one = torch.ones(1, device=device)

    def additions() -> float:
        start = clock()
        for _ in range(100):
            torch.add(one, one)
        seconds = clock() - start
        _synchronize(device)  # outside: the device works while Python dispatches
        return max(seconds, 1e-9)

    with torch.no_grad():
        additions()
        return 1.0 / _rate(additions, 100.0, budget_seconds, clock).best


def matmul_rate(
    dtype: torch.dtype,
    *,
    device: str | torch.device = "cpu",
    size: int = 256,
    budget_seconds: float = 0.2,
    clock: Clock = time.perf_counter,
) -> float | None:
    """Measured FLOP/s of square matrix products of one size: the best of many short slices.

    A product of size 64 runs first; if it predicts that one full slice takes longer than the budget (an emulated
    dtype can be sixty times slower), its own rate is the answer. None: torch has no product of this dtype here.

    Raises:
        ValueError: ``size`` below 64 or a budget that is not positive.

    Example::

        >>> matmul_rate(torch.float32, budget_seconds=0.01) > 0
        True
    """
    if size < 64 or budget_seconds <= 0:
        raise ValueError(
            f"size={size!r}, budget_seconds={budget_seconds!r}: size is at least 64 and the budget positive"
        )
    device = torch.device(device)
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        begin = clock()
        try:
            small = _timed_product(dtype, 64, device, clock)
            # The first call also loads kernels: it may be slow for a dtype that is fast.
            best_small = small()
        except NotImplementedError:
            return None
        growth = (size / 64) ** 3
        while best_small * growth > budget_seconds and clock() - begin < budget_seconds / 2:
            best_small = min(best_small, small())
        if best_small * growth > budget_seconds:
            return 2 * 64**3 / best_small
        return _rate(_timed_product(dtype, size, device, clock), 2.0 * size**3, budget_seconds, clock).best


def _timed_product(dtype: torch.dtype, side: int, device: torch.device, clock: Clock) -> Callable[[], float]:
    """A function that multiplies two matrices and returns the seconds it took."""
    # Made without random numbers, so that the user's generators stay where they are.
    ramp = torch.linspace(-1.0, 1.0, side * side, dtype=torch.float32, device=device).reshape(side, side)
    matrix = ramp.to(dtype)

    def product() -> float:
        start = clock()
        torch.mm(matrix, matrix)
        _synchronize(device)
        return max(clock() - start, 1e-9)

    return product


def _rate(run: Callable[[], float], amount: float, budget_seconds: float, clock: Clock) -> Rate:
    """Repeat ``run`` until the budget is spent; ``amount`` is what one run does."""
    begin, seconds = clock(), [run()]
    while clock() - begin < budget_seconds:
        seconds.append(run())
    return Rate(amount / min(seconds), amount / statistics.median(seconds), len(seconds))


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _buffer_bytes(device: torch.device) -> int:
    """Larger than the last cache: 64 to 256 MB of a CPU's memory, up to 512 MB of a GPU's, an eighth of what is free."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return max(_MEGABYTE, min(512 * _MEGABYTE, free // 8) // _MEGABYTE * _MEGABYTE)
    if device.type != "cpu":
        return 256 * _MEGABYTE
    return min(256 * _MEGABYTE, max(64 * _MEGABYTE, 2 * _last_cache_bytes()))


def _last_cache_bytes() -> int:
    """Size of the processor's last cache, as Linux tells it; 0 where unknown."""
    sizes = [path.read_text().strip() for path in _CACHE_SIZES.glob("index*/size")]
    units = {"K": 1 << 10, "M": 1 << 20}
    return max((int(size[:-1]) * units[size[-1]] for size in sizes if size[-1:] in units), default=0)
