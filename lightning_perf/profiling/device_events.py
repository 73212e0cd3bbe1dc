"""The device's own timeline: events recorded at every change of phase and read later, never a synchronisation.

On a GPU the host only enqueues. An event recorded in the stream at each change of phase cuts the device's timeline at
the same places; the span between two events belongs to the phase that was open in between. Events come from a pool and
are read once the device has passed them, some steps later.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

import torch

_LEFT_OUT = -1


class Event(Protocol):
    """What is needed of ``torch.cuda.Event(enable_timing=True)``."""

    def record(self) -> None: ...

    def query(self) -> bool: ...

    def elapsed_time(self, end_event: Event, /) -> float: ...


def cuda_event() -> Event:
    """A timing event of the current CUDA device."""
    return torch.cuda.Event(enable_timing=True)  # type: ignore[return-value]


class DeviceTimeline:
    """Seconds of the device by phase; :meth:`mark` belongs into :class:`PhaseClock`'s ``mark``.

    Args:
        make_event: makes one event; injected by tests.

    A span covers everything between two marks on the stream, idle gaps included: a device that waits for the host shows
    up in the phase in which it waits.
    """

    def __init__(self, make_event: Callable[[], Event] = cuda_event) -> None:
        self._make_event = make_event
        self._pool: list[Event] = []
        self._open: deque[tuple[Event, int]] = deque()
        self.seconds: dict[int, float] = {}
        self._last = -1
        self._marks = 0

    def mark(self, phase: int) -> None:
        """From here on the device works for ``phase``."""
        if phase == self._last:
            return
        self._last = phase
        event = self._pool.pop() if self._pool else self._make_event()
        event.record()
        self._open.append((event, phase))
        self._marks += 1

    def end_step(self, *, counts: bool = True) -> None:
        """A step has ended; one that does not count is left out, however far behind the device is."""
        if not counts:
            for back in range(1, min(self._marks, len(self._open)) + 1):
                self._open[-back] = (self._open[-back][0], _LEFT_OUT)
        self._marks = 0
        self.poll()

    def poll(self) -> None:
        """Read the events that the device has passed; never waits."""
        while len(self._open) > 1 and self._open[1][0].query():
            event, phase = self._open.popleft()
            if phase != _LEFT_OUT:
                self.seconds[phase] = self.seconds.get(phase, 0.0) + event.elapsed_time(self._open[0][0]) / 1e3
            self._pool.append(event)

    @property
    def outstanding(self) -> int:
        """Events that the device has not passed yet, or that were not polled."""
        return len(self._open)

    def reset(self) -> None:
        """Forget all seconds; events that are still in the stream are left out."""
        self.seconds.clear()
        self._open.clear()
        self._last, self._marks = -1, 0
