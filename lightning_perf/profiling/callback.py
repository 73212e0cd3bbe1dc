"""ThroughputProfiler: where the time of a training goes, what the hardware could do, and what to switch on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from lightning_perf.host import BatchMeter, PerfCallback
from lightning_perf.host.run_length import accumulation_by_epoch
from lightning_perf.profiling.callback_evidence import training_loader
from lightning_perf.profiling.callback_observe import Observations
from lightning_perf.profiling.callback_summary import build_report
from lightning_perf.profiling.callback_watch import (
    count_batches,
    hear_each_step,
    listen,
    listen_to_raw_steps,
    show_in_progress_bar,
)
from lightning_perf.profiling.device_events import DeviceTimeline
from lightning_perf.profiling.phases import PhaseClock
from lightning_perf.profiling.profile_report import ProfileReport
from lightning_perf.profiling.step_plan import StepPlan
from lightning_perf.report import check_writable

_UNTIL_LOOKED = ("on_train_batch_start", "on_train_batch_end")


class ThroughputProfiler(PerfCallback):
    """Time, FLOPs, memory and advice for an unchanged module; results stay bit for bit what they were.

    Every second of the training is charged to one phase: waiting for data, starting workers, moving batches, forward,
    backward, optimizer, logging, each callback, validation, checkpoints, Lightning's loop, and an unnamed rest. One early
    step is counted (FLOPs), one is looked at for memory, a few are kept as a timeline; these are left out of the timing,
    and so are the first two. On a GPU the device's own timeline is read from events, without a synchronisation.

    Args:
        every_n_steps: how often samples/s, milliseconds per step and shares go to the Trainer's loggers and the bar.
        flops: count the FLOPs of one training step, forward and backward, per module.
        roofline: measure what this machine can do (about two seconds after the training), for MFU.
        trace_steps: write an operator trace of so many steps for chrome://tracing into ``report_dir``.
        report_dir: write ``profile.json`` and ``profile.html`` there at the end.

    Raises:
        ValueError: ``every_n_steps`` below 1, ``trace_steps`` below 0 or without ``report_dir``.
        UnwritableReportError: ``report_dir`` cannot be written; before the training starts.

    Source: the actions that Lightning reports to its profilers. Deviation: they are made exclusive of each other, and what
    Lightning does not report (loggers, ``self.log``, validation as a whole, the making of iterators) is heard as well.

    Example::

        >>> import lightning_perf as lp
        >>> from lightning.pytorch import Trainer
        >>> profiler = lp.ThroughputProfiler(every_n_steps=10)
        >>> trainer = Trainer(callbacks=[profiler], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        *,
        every_n_steps: int = 50,
        flops: bool = True,
        roofline: bool = True,
        trace_steps: int = 0,
        report_dir: str | None = None,
    ) -> None:
        super().__init__(
            every_n_steps=every_n_steps,
            flops=flops,
            roofline=roofline,
            trace_steps=trace_steps,
            report_dir=None if report_dir is None else str(report_dir),
        )
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps={every_n_steps!r} is below 1; log every step or less often.")
        if trace_steps < 0 or (trace_steps and report_dir is None):
            raise ValueError(
                f"trace_steps={trace_steps!r} needs a count of steps and report_dir= to write the trace to; pass "
                "ThroughputProfiler(trace_steps=3, report_dir='profile')."
            )
        self.every_n_steps, self.flops, self.roofline = every_n_steps, flops, roofline
        self.trace_steps = trace_steps
        self.report_dir = None if report_dir is None else Path(report_dir)
        self._report: ProfileReport | None = None
        self._observed: Observations | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_observed": None}

    @property
    def has_report(self) -> bool:
        """Whether a fit has ended in which at least one step was timed."""
        return self._report is not None

    @property
    def report(self) -> ProfileReport:
        """What was measured in the last fit that timed a step.

        Raises:
            RuntimeError: there was no such fit yet.
        """
        if self._report is None:
            raise RuntimeError("ThroughputProfiler has no report yet: it is there when trainer.fit has trained a step.")
        return self._report

    def engage(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Put clocks beside a fit."""
        if stage != "fit":
            self.say(f"profiles training; nothing to do in {stage}.")
            return
        if self.report_dir is not None:
            check_writable(self.report_dir / "profile.json")
        device = trainer.strategy.root_device
        clock = PhaseClock()
        timeline = DeviceTimeline() if device.type == "cuda" else None
        clock.mark = None if timeline is None else timeline.mark
        undo = self.undo(trainer)
        listen(trainer, pl_module, clock, undo)
        for name in _UNTIL_LOOKED:
            undo.push(self.__dict__.pop, name, None)

        def log(scalars: dict[str, float]) -> None:
            for logger in trainer.loggers:
                logger.log_metrics(scalars, step=trainer.fit_loop.epoch_loop._batches_that_stepped)

        plan = StepPlan(flops=self.flops, trace_steps=self.trace_steps, folder=self.report_dir)
        self._observed = Observations(
            trainer, pl_module, clock, timeline, plan, self.every_n_steps, log if trainer.loggers else None
        )
        undo.push(self._observed.close)
        show_in_progress_bar(trainer, self._observed.bar_line, undo)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Lightning's hook: everything before was set-up."""
        observed = self._observed
        if observed is None:
            return
        if not pl_module.automatic_optimization:
            listen_to_raw_steps(trainer, observed.clock, self.undo(trainer))
        loader = training_loader(trainer)
        size = getattr(loader, "batch_size", None)
        observed.meter = BatchMeter(size if isinstance(size, int) else None)
        observed.begin(_known_batches(trainer))
        undo = self.undo(trainer)
        count_batches(trainer, observed.clock, observed.saw, undo)
        hear_each_step(trainer, observed.clock, observed.next_batch, undo)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Lightning's hook, until the last step that is looked into: whether this is one."""
        if self._observed is not None:
            self._observed.look()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Lightning's hook, until the last step that is looked into: look away."""
        if self._observed is not None and not self._observed.look_away():
            for name in _UNTIL_LOOKED:  # Lightning skips what cannot be called, and a step pays nothing for it
                if getattr(type(self), name) is getattr(ThroughputProfiler, name):
                    self.__dict__[name] = None

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Lightning's hook: the report."""
        self._finish(trainer, whole=True)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Lightning's hook: a report of what there was until then, then put everything back."""
        try:
            self._finish(trainer, whole=False)
        finally:
            super().on_exception(trainer, pl_module, exception)

    def _finish(self, trainer: Any, whole: bool) -> None:
        observed, self._observed = self._observed, None
        if observed is None or not observed.began:
            return
        observed.finish(whole=whole)
        if observed.steps.count == 0:
            self.say("no step was timed: the first ones warm up or are looked into, so train a few more.")
            return
        self._report = build_report(trainer, observed, roofline=self.roofline and whole, gather=whole)
        if not trainer.is_global_zero:
            return
        self.say(f"report\n{self._report.table()}")
        if self.report_dir is not None:
            self._report.to_json(self.report_dir / "profile.json")
            self.say(f"page with plots: {self._report.to_html(self.report_dir / 'profile.html')}")


def _known_batches(trainer: Any) -> int | None:
    """How many batches the fit may train at most; ``None`` without a limit."""
    epochs, steps = (math.inf if most in (None, -1) else most for most in (trainer.max_epochs, trainer.max_steps))
    most = min(trainer.num_training_batches * epochs, steps * max(accumulation_by_epoch(trainer).values()))
    return int(most) if math.isfinite(most) else None
