"""Was the machine busy with something else while we measured?"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

_STEAL_LIMIT = 0.02
_FOREIGN_LOAD_LIMIT = 0.5
_SWITCHES_LIMIT = 100.0


@dataclass(frozen=True)
class Contention:
    """What a stretch of time cost this process, and who else wanted the machine; None: the system does not tell.

    Processor time and switches include child processes that ended in that stretch; one that still runs counts as
    somebody else.

    Example::

        >>> print(Contention(10.0, 9.9, cores=2, load_average=5.2, steal_share=0.0, involuntary_switches=20).sentence())
        The machine was busy: load average 5.2 of which this process explains 1.0, on 2 cores. Trust the ratios only.
    """

    wall_seconds: float
    cpu_seconds: float
    cores: int
    load_average: float | None = None
    steal_share: float | None = None
    involuntary_switches: int | None = None

    def reasons(self) -> list[str]:
        """Why the machine counts as busy; empty when it was quiet.

        Limits: 2 % of the processor time stolen by the hypervisor; a load average that exceeds this process's own use
        by half of the cores; 100 involuntary context switches per second of processor time.
        """
        found: list[str] = []
        own = self.cpu_seconds / self.wall_seconds if self.wall_seconds > 0 else 0.0
        if self.load_average is not None and self.load_average - own > _FOREIGN_LOAD_LIMIT * self.cores:
            found.append(
                f"load average {self.load_average:.1f} of which this process explains {own:.1f}, on {self.cores} cores"
            )
        if self.steal_share is not None and self.steal_share > _STEAL_LIMIT:
            found.append(f"{self.steal_share:.0%} of the processor time stolen by the hypervisor")
        if self.involuntary_switches is not None and self.cpu_seconds > 0:
            rate = self.involuntary_switches / self.cpu_seconds
            if rate > _SWITCHES_LIMIT:
                found.append(f"interrupted {rate:.0f} times per second of its own processor time")
        return found

    def sentence(self) -> str:
        """One sentence for a report."""
        found = self.reasons()
        if found:
            return f"The machine was busy: {'; '.join(found)}. Trust the ratios only."
        if self.load_average is None and self.steal_share is None and self.involuntary_switches is None:
            return "This system does not tell whether the machine was busy."
        return "The machine was quiet."


def _cpu_seconds() -> float:
    """Processor time of this process and of its children that have ended (workers, one process per variant)."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def _load_average() -> float | None:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _processor_ticks() -> tuple[int, int] | None:
    """Ticks of all processors together so far: (stolen, all)."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    # user nice system idle iowait irq softirq steal; guest time is already part of user and nice.
    ticks = [int(field) for field in stat.read_text().splitlines()[0].split()[1:9]]
    return (ticks[7], sum(ticks)) if len(ticks) == 8 else None


def _involuntary_switches() -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    return sum(resource.getrusage(who).ru_nivcsw for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class watch_contention:
    """Watch a ``with`` block; afterwards ``result`` holds its `Contention`.

    The readers can be replaced, for tests and for other systems. The load average is the higher one of the two ends.

    Example::

        >>> with watch_contention() as watch:
        ...     _ = sum(range(1000))
        >>> watch.result.wall_seconds > 0
        True
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.perf_counter,
        cpu_clock: Callable[[], float] = _cpu_seconds,
        load_average: Callable[[], float | None] = _load_average,
        processor_ticks: Callable[[], tuple[int, int] | None] = _processor_ticks,
        involuntary_switches: Callable[[], int | None] = _involuntary_switches,
        cores: int | None = None,
    ) -> None:
        self._clock, self._cpu_clock = clock, cpu_clock
        self._load_average, self._ticks, self._switches = load_average, processor_ticks, involuntary_switches
        self._cores = _cores() if cores is None else cores
        self._result: Contention | None = None

    @property
    def result(self) -> Contention:
        """What was seen.

        Raises:
            RuntimeError: the block has not ended yet.
        """
        if self._result is None:
            raise RuntimeError("watch_contention().result is known after the with block has ended; read it there")
        return self._result

    def __enter__(self) -> watch_contention:
        self._start = (self._clock(), self._cpu_clock(), self._load_average(), self._ticks(), self._switches())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        wall, cpu, load, ticks, switches = self._start
        loads = [value for value in (load, self._load_average()) if value is not None]
        ticks_now, switches_now = self._ticks(), self._switches()
        steal = None
        if ticks is not None and ticks_now is not None:
            passed = ticks_now[1] - ticks[1]
            steal = (ticks_now[0] - ticks[0]) / passed if passed > 0 else 0.0
        self._result = Contention(
            wall_seconds=self._clock() - wall,
            cpu_seconds=self._cpu_clock() - cpu,
            cores=self._cores,
            load_average=max(loads, default=None),
            steal_share=steal,
            involuntary_switches=None if switches is None or switches_now is None else switches_now - switches,
        )
