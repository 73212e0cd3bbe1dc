"""What a single step is looked into with: its peak memory by phase, and an operator trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lightning_perf import measuring
from lightning_perf.host import at_timing_door
from lightning_perf.profiling.phases import PhaseClock


def peak_bytes(device: torch.device) -> int | None:
    """Peak memory since :func:`reset_peak`: of the allocator on CUDA, of the process elsewhere; ``None``: unknown."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else measuring.peak_rss_bytes()


def reset_peak(device: torch.device) -> None:
    """Begin a new peak."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        measuring.reset_peak_rss()


def watch_memory(clock: PhaseClock, device: torch.device, saw: Callable[[int, str], None]) -> Callable[[], None]:
    """Have ``saw(bytes, phase)`` told the peak of every phase as it ends; returns the function that stops that."""
    marked, current = clock.mark, clock.current

    def mark(phase: int) -> None:
        nonlocal current
        peak = peak_bytes(device)
        if peak is not None:
            saw(peak, current)
        reset_peak(device)
        current = clock.names[phase]
        if marked is not None:
            marked(phase)

    clock.mark = mark
    return lambda: setattr(clock, "mark", marked)


@contextmanager
def operator_trace(trainer: Any, device: torch.device, path: Path) -> Iterator[None]:
    """Write what torch ran in the block, with the loops' actions, to ``path`` for chrome://tracing."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    path.parent.mkdir(parents=True, exist_ok=True)
    names = _NamedRanges()
    profiler = torch.profiler.profile(activities=activities)
    try:
        with profiler:
            leave = at_timing_door(trainer, names)
            try:
                yield
            finally:
                leave()
                names.close()
    finally:
        profiler.export_chrome_trace(str(path))


class _NamedRanges:
    """Writes the loops' actions into torch's profile, so that a trace shows both."""

    def __init__(self) -> None:
        self._open: list[Any] = []

    def start(self, action: str) -> None:
        """An action begins."""
        span = torch.profiler.record_function(action)
        span.__enter__()
        self._open.append(span)

    def stop(self, action: str) -> None:
        """An action ends; one that began before the trace is not in it."""
        if self._open:
            self._open.pop().__exit__(None, None, None)

    def close(self) -> None:
        """End what is still open."""
        while self._open:
            self.stop("")
