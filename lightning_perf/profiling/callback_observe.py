"""What happens at each step of a profiled training: count it, or look into it and leave it out of the timing."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from lightning_perf import measuring
from lightning_perf.host import BatchMeter
from lightning_perf.profiling import phases
from lightning_perf.profiling.callback_evidence import ProcessorUse
from lightning_perf.profiling.callback_looks import operator_trace, peak_bytes, reset_peak, watch_memory
from lightning_perf.profiling.device_events import DeviceTimeline
from lightning_perf.profiling.flop_count import FlopCount
from lightning_perf.profiling.flops import FlopCounter
from lightning_perf.profiling.phases import PhaseClock, Span
from lightning_perf.profiling.step_plan import NOT_TIMED, SHORT, StepPlan
from lightning_perf.profiling.steps import StepStatistics

_ALIKE = 16
_OWN = f"{phases.CALLBACK}ThroughputProfiler"


class Observations:
    """Everything that one profiled fit has seen so far."""

    def __init__(
        self,
        trainer: Any,
        module: Any,
        clock: PhaseClock,
        timeline: DeviceTimeline | None,
        plan: StepPlan,
        every: int,
        tell: Callable[[dict[str, float]], None] | None,
    ) -> None:
        self.clock, self.timeline, self.plan = clock, timeline, plan
        self.steps = StepStatistics()
        self.module = module
        self.device: torch.device = trainer.strategy.root_device
        self._trainer = trainer
        self.meter = BatchMeter()
        self.began = False
        self.flops: FlopCount | None = None
        self.memory: dict[str, int] = {}
        self.spans: list[Span] = []
        self.contention = ""
        self.processor = ProcessorUse()
        self.first_start = 0.0
        self.seconds: dict[str, float] = {}
        self.peak_memory: int | None = None
        self.traced: Path | None = None
        self._watch = measuring.watch_contention()
        self._now = time.perf_counter
        self._every, self._tell = every, tell
        self._index = 0
        self._role = "timed"
        self._forget = False
        self._trained = self._steady = False
        self._looks_on = True
        self._size: tuple[int | None, int | None] = (None, None)
        self._same = self._alike = self._before_index = 0
        self._pending: list[float] = []
        self._progress = trainer.fit_loop.epoch_loop.batch_progress
        self._step_began = self._was_away = 0.0
        self._before: list[float] = []
        self._looking, self._tracing = ExitStack(), ExitStack()
        self._counter: FlopCounter | None = None
        self._own = clock.span(_OWN)
        self._depth = 0
        self._line: dict[str, str] = {}
        self._shown_next = every
        self._shown_at: tuple[int, float, dict[str, float]] = (0, 0.0, {})

    def begin(self, batches: int | None) -> None:
        """Training starts, of so many batches if that is known: everything so far was set-up."""
        self.began = True
        self.plan.short = batches is not None and batches < SHORT
        self._watch.__enter__()
        reset_peak(self.device)
        self._depth = self.clock.depth
        starting = self.clock.index_of(phases.WORKER_START)
        self.first_start = self.clock.totals[starting]
        self.clock.reset(ground=phases.REST)
        self.clock.totals[starting] = self.first_start
        if self.timeline is not None:
            self.timeline.reset()
        self._step_began, self._was_away = self.clock.now(), self.clock.away
        self._before = self.clock.totals[:]
        self.processor = ProcessorUse()

    def look(self) -> None:
        """A batch is there: begin to look into its step, if this is one to look into."""
        self._looking.close()  # open still if the module skipped the step before
        self._role = role = self.plan.role(self._index)
        self._forget = role in NOT_TIMED
        if role == "flops":
            self._count_flops()
        elif role == "memory":
            self._watch_memory()
        elif role == "timeline" and self.plan.role(self._index - 1) != role:
            self.clock.record()
        elif role == "trace":
            self._trace()

    def look_away(self) -> bool:
        """The batch is done with; returns whether some later step will be looked into."""
        self._looking.close()
        role, following = self._role, self.plan.role(self._index + 1)
        if role == "flops" and self._counter is not None:
            self.flops = self._counter.count
        if role == "timeline" != following:
            self.spans = self.clock.recorded()
        if role == "trace" != following:
            self._tracing.close()
        self._looks_on = self._index < self.plan.last_looked_into
        return self._looks_on

    def saw(self, batch: Any) -> None:
        """What the step under way was made of."""
        self._trained = True
        if self._forget:
            return
        last = self._progress.is_last_batch
        # Of batches of one size every sixteenth is looked at, and the last of an epoch.
        if self._steady and not last and self._index & 15:
            self._same += 1
            return
        size = self.meter(batch)
        if size == self._size:
            self._alike += 1
            self._steady = self._alike >= _ALIKE
            self._same += 1
        elif last:  # the rest of an epoch; the next one goes on as before
            self.steps.add_samples(1, size)
        else:
            self._count_samples()
            self._same, self._size = 1, size
            self._alike, self._steady = 0, False

    def next_batch(self) -> None:
        """The loop asks for the next batch: one step ends, another begins."""
        if not self._trained:  # as at the end of a loader that does not know its length
            return
        self._end_step()
        if not self._index % self._every:
            self._log()

    def _end_step(self) -> None:
        self._trained = False
        away = self.clock.away
        if self._looks_on or self._forget or self.timeline is not None:
            now = self._end_watched_step(away)
        else:
            now = self._now()
            self._pending.append(now - self._step_began - (away - self._was_away))
        self._step_began, self._was_away = now, away
        self._index = index = self._index + 1
        if self._looks_on or not index & 63:
            self._count_steps()
            self._before, self._before_index = self.clock.totals[:], index

    def _end_watched_step(self, away: float) -> float:
        """End a step that more is known of than its time, or that does not count; returns this moment."""
        counts = not self._forget
        if counts:
            now = self._now()
            self._pending.append(now - self._step_began - (away - self._was_away))
        else:
            now = self._roll_back()
        if self._looks_on or not counts:
            self.processor.step(counts=counts)
        if self.timeline is not None:
            self.timeline.end_step(counts=counts)
        return now

    def _count_steps(self) -> None:
        """Count the steps that ended since the last time, at most 64 of them."""
        totals, span = self.clock.totals, self._index - self._before_index
        for step, seconds in self.steps.add(self._pending):
            self.steps.stalled(step, seconds, self._before, totals, self.clock.names, span)
        self._pending.clear()

    def _roll_back(self) -> float:
        """Forget the seconds of the step under way; returns this moment."""
        now, totals, before = self.clock.now(), self.clock.totals, self._before
        totals[:] = [*before, *[0.0] * (len(totals) - len(before))]
        self._forget = False
        return now

    def _log(self) -> None:
        """Give the latest figures to the loggers, if there are any."""
        if self._tell is not None:
            with self._own:
                scalars = self.scalars()
                if scalars:
                    self._tell(scalars)

    def _count_samples(self) -> None:
        self.steps.add_samples(self._same, self._size)
        self._same = 0

    def finish(self, *, whole: bool) -> None:
        """Training is over, or was broken off: then the step under way counts only if it was timed to its end."""
        self.close()
        if self._trained:
            self._end_step()
            if whole and not self._index % self._every:
                self._log()
        elif self._forget:
            self._roll_back()
        self.processor.step()
        self._count_steps()
        self._count_samples()
        self.spans = self.spans or self.clock.recorded()
        self.clock.unwind(self._depth)
        self.seconds = phases.by_phase(self.clock.seconds())
        self._watch.__exit__(None, None, None)
        self.contention = self._watch.result.sentence()
        if self.timeline is not None:
            self.timeline.poll()
        peak = peak_bytes(self.device)
        self.peak_memory = None if peak is None else max(peak, self.peak_memory or 0)

    def close(self) -> None:
        """Let go of what a step is being looked into with."""
        self._looking.close()
        self._tracing.close()

    def device_seconds(self) -> dict[str, float]:
        """The device's own timeline by phase, in seconds; empty without one."""
        if self.timeline is None:
            return {}
        names = self.clock.names
        return phases.by_phase({names[index]: seconds for index, seconds in self.timeline.seconds.items()})

    def scalars(self) -> dict[str, float]:
        """What goes to the loggers: rates, milliseconds per step, shares of phases since the last time."""
        self._count_steps()
        self._count_samples()
        count, seconds = self.steps.count, self.steps.seconds
        last_count, last_seconds, last_phases = self._shown_at
        now = phases.by_phase(self.clock.seconds())
        self._shown_at = (count, seconds, now)
        if count == last_count:
            return {}
        found = {"profile/step_ms": 1e3 * (seconds - last_seconds) / (count - last_count)}
        if (rate := self.steps.samples_per_second()) is not None:
            found["profile/samples_per_second"] = rate
        if (rate := self.steps.tokens_per_second()) is not None:
            found["profile/tokens_per_second"] = rate
        grown = {name: max(value - last_phases.get(name, 0.0), 0.0) for name, value in now.items()}
        whole = sum(grown.values())
        if whole > 0:
            found.update({f"profile/share/{_key(name)}": value / whole for name, value in grown.items() if value > 0})
        return found

    def _refresh(self) -> None:
        """Compute the line of the progress bar anew."""
        self._count_steps()
        self._count_samples()
        seconds = phases.by_phase(self.clock.seconds())
        whole = sum(seconds.values())
        rate = self.steps.samples_per_second()
        self._line = {} if rate is None else {"samples/s": f"{rate:.4g}"}
        if whole > 0 and self.steps.count:
            name = max(seconds, key=lambda one: seconds[one])
            self._line["most"] = f"{name} {seconds[name] / whole:.0%}"
            self._line["data wait"] = f"{seconds.get(phases.DATA_WAIT, 0.0) / whole:.0%}"

    def bar_line(self) -> dict[str, str]:
        """What the progress bar shows beside its own metrics; computed anew as often as the loggers are told."""
        if self._index >= self._shown_next:
            self._shown_next = self._index + self._every
            with self._own:
                self._refresh()
        return self._line

    def _count_flops(self) -> None:
        self._counter = self._looking.enter_context(FlopCounter(self.module))

    def _watch_memory(self) -> None:
        def saw(peak: int, phase: str) -> None:
            self.peak_memory = max(peak, self.peak_memory or 0)
            if not phase.startswith(phases.CALLBACK):
                self.memory[phase] = max(peak, self.memory.get(phase, 0))

        self._looking.callback(watch_memory(self.clock, self.device, saw))

    def _trace(self) -> None:
        if self.traced is not None or self.plan.folder is None:
            return
        self.traced = self.plan.folder / "trace.json"
        self._tracing.enter_context(operator_trace(self._trainer, self.device, self.traced))


def _key(phase: str) -> str:
    """A phase as part of a metric's name; loggers such as MLflow's take letters, digits, spaces and ``/-_.`` only."""
    return phase.partition(" (")[0].replace(": ", "/")
