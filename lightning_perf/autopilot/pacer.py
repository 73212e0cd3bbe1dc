"""Pacer: makes one fit as long as its rung of a race, and ends it early if it diverges."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from lightning_perf.autopilot.halving import Pace
from lightning_perf.host import PerfCallback
from lightning_perf.host.run_length import accumulation_in, configured_steps, own_max_steps, set_run_length
from lightning_perf.optim.held_rates import reference_lr
from lightning_perf.optim.registry import list_optimizers
from lightning_perf.report import Run

#: These would write files, draw over the race's own bar, or end a run before its time.
STAY_OUT = ("Checkpoint", "EarlyStopping", "ProgressBar")
#: Reading a loss waits for the device, so that only some are read.
_LOOK_EVERY = 8


class Pacer(PerfCallback):
    """Sets the number of optimizer steps and of validations of one fit, and records what planning a race needs.

    The last step is always followed by a validation. A fit that takes longer than its seconds ends there, after a
    validation; so does one whose loss was not finite at two looks in a row (one look is what mixed precision may show).

    Args:
        pace: steps, validations and seconds.
        clock: seconds; injected by tests.
    """

    essential = True

    def __init__(self, pace: Pace, clock: Callable[[], float] = time.perf_counter) -> None:
        super().__init__(**dataclasses.asdict(pace))
        self.pace = pace
        self._clock = clock
        self._reset()

    def _reset(self) -> None:
        self.steps = 0
        self.cut: str | None = None
        self.diverged: str | None = None
        self.found: dict[str, float | None] = {}
        self.validations: list[float] = []
        self._start = self._validation_start = math.nan
        self._batches = self._not_finite = 0
        self._max_steps = -1

    def engage(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Set the length before the module is asked for its optimizers."""
        if stage != "fit":
            return
        self._reset()
        self._max_steps = own_max_steps(trainer)
        every = max(1, self.pace.steps // self.pace.evaluations) * accumulation_in(trainer, 0)
        self.undo(trainer).push(set_run_length(trainer, self.pace.steps, every))

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Record how long the user's own training is, and how its learning rate stands to the usual one."""
        self.found = {
            "configured_steps": configured_steps(trainer, self._max_steps),
            "lr_share": _lr_share(trainer.optimizers),
        }
        self._start = self._clock()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """End the fit after its last step, after its seconds, or when it has diverged."""
        self._batches += 1
        self.steps = trainer.global_step
        if self.steps >= self.pace.steps:
            trainer.should_stop = True
        elif self._batches % _LOOK_EVERY == 0:
            self._look(trainer, outputs)

    def _look(self, trainer: Any, outputs: Any) -> None:
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        finite = not isinstance(loss, torch.Tensor) or bool(torch.isfinite(loss.detach()).all())
        self._not_finite = 0 if finite else self._not_finite + 1
        late = self.pace.seconds is not None and self._clock() - self._start > self.pace.seconds
        if trainer.strategy.reduce_boolean_decision(self._not_finite > 1, all=False):
            self.diverged = f"the loss was not finite at step {self.steps}"
            trainer.should_stop = True
        elif trainer.strategy.reduce_boolean_decision(late, all=False):
            self.cut = f"stopped after {self.pace.seconds:.3g} s, at step {self.steps} of {self.pace.steps}"
            trainer.should_stop = True

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Start timing a validation."""
        self._validation_start = self._clock()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Keep its seconds; the sanity check's are not a validation's."""
        if not trainer.sanity_checking:
            self.validations.append(self._clock() - self._validation_start)

    def finished(self, run: Run) -> Run:
        """The stopwatch's run with what was recorded here, and with its divergence as its error."""
        quantities = {
            **run.quantities,
            **self.found,
            "steps": float(self.steps),
            "validations": float(len(self.validations)),
            "validation_seconds": sum(self.validations),
        }
        diverged = self.diverged or _not_finite_at_the_end(run)
        error = None if diverged is None else f"diverged: {diverged}"
        notes = run.notes if self.cut is None else (*run.notes, self.cut)
        return dataclasses.replace(run, quantities=quantities, error=run.error or error, notes=notes)


def _not_finite_at_the_end(run: Run) -> str | None:
    for name, points in run.curves.items():
        if points and not math.isfinite(points[-1][1]):
            return f"{name} ended at {points[-1][1]}"
    return None


def _lr_share(optimizers: list[Any]) -> float | None:
    """The learning rate as a part of what the registry holds usual for that class; None where it does not know."""
    usual = {row.class_name: row.defaults.get("lr") for row in reversed(list_optimizers())}
    if len(optimizers) != 1:
        return None
    found = usual.get(type(optimizers[0]).__name__)
    return reference_lr(optimizers[0]) / found if isinstance(found, float) else None
