"""Which steps of a profiled training are looked into, and which of them are left out of the timing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

#: Roles of steps whose time is not counted.
NOT_TIMED = ("warm-up", "flops", "memory", "trace")
#: Below so many batches nothing is left out as warm-up: the first one is counted, all others are timed.
SHORT = 8
_WARM_UP = 2
_TIMELINE_STEPS = 3


@dataclass
class StepPlan:
    """Which steps are looked into: step 2 for FLOPs, step 3 for memory, steps 4 to 6 for the timeline, then the trace.

    A run of fewer than eight batches has no steps to spare: there the first one is counted and nothing is traced.
    """

    flops: bool
    trace_steps: int = 0
    folder: Path | None = None
    short: bool = False

    @property
    def last_looked_into(self) -> int:
        """The index of the last step that is not only timed."""
        return 0 if self.short else _WARM_UP + 1 + _TIMELINE_STEPS + self.trace_steps

    def role(self, index: int) -> str:
        """``warm-up``, ``flops``, ``memory``, ``timeline``, ``trace`` or ``timed`` for the step of that index."""
        if self.short:
            return "flops" if index == 0 and self.flops else "timed"
        if index < _WARM_UP:
            return "warm-up"
        if index == _WARM_UP:
            return "flops" if self.flops else "timed"
        if index == _WARM_UP + 1:
            return "memory"
        if index < _WARM_UP + 2 + _TIMELINE_STEPS:
            return "timeline"
        if index < _WARM_UP + 2 + _TIMELINE_STEPS + self.trace_steps:
            return "trace"
        return "timed"
