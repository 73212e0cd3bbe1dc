"""Stopwatch: what one fit took, without changing it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from statistics import median
from typing import Any

import torch

from lightning_perf import measuring
from lightning_perf.autopilot.direction import Mode, direction_of, monitored_modes
from lightning_perf.host import PerfCallback, batch_size_of
from lightning_perf.report import Run

_MAX_LOSSES = 2_000
_WARM_UP_BATCHES = 2


class Stopwatch(PerfCallback):
    """Records samples per second, seconds to a target, the metric over time and peak memory of one fit.

    Seconds count from ``on_train_start``, validation and checkpoints included; the speed is the median over batches of
    batch size by the time from one batch's start to the next within an epoch, so that rare stalls do not move it. Nothing
    is synchronised on a GPU: over many batches the host cannot run ahead of the device for long.

    Args:
        metric: name in ``trainer.callback_metrics`` read after every validation; ``None`` takes ``val_acc``, ``val_loss`` or
            the first that starts with ``val``, whatever the module logs.
        mode: ``max`` or ``min``: which direction of the metric is better; ``None`` takes what the Trainer's checkpoint,
            early stopping or ``ReduceLROnPlateau`` for it says, else tells it from the name.
        target: seconds to this value of the metric are recorded.
        monitored: what callbacks monitored that are no longer in the Trainer.
        clock: seconds; injected by tests.
    """

    def __init__(
        self,
        metric: str | None = None,
        mode: str | None = None,
        target: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
        monitored: Mapping[str, Mode] | None = None,
    ) -> None:
        super().__init__(metric=metric, mode=mode, target=target)
        self._wanted, self._mode, self.target = metric, mode, target
        self._clock = clock
        self._given: dict[str, Mode] = dict(monitored or {})
        self._reset()

    def _reset(self) -> None:
        self.metric = self._wanted
        self.losses: list[tuple[float, Any]] = []
        self.metrics: list[tuple[float, float]] = []
        self.batch_seconds: list[float] = []
        self.batch_sizes: list[int | None] = []
        self.seconds: float | None = None
        self.peak_memory: int | None = None
        self.missing_metric: str | None = None
        self.monitored: dict[str, Mode] = self._given
        self._start = self._batch_start = math.nan
        self._rss: int | None = None

    def engage(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Start with empty records."""
        if stage == "fit":
            self._reset()
            # Before any other callback's setup: what a lever keeps in the heap must not count as somebody else's.
            self._rss = measuring.rss_bytes() if measuring.reset_peak_rss() else None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Note what is monitored, start the clock and reset the peak of the device's memory."""
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(trainer.strategy.root_device)
        self.monitored = {**monitored_modes(trainer), **self._given}
        self._start = self._clock()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Close the span of the batch before, which holds the wait for this batch."""
        now = self._clock()
        if not math.isnan(self._batch_start):
            self.batch_seconds.append(now - self._batch_start)
        self.batch_sizes.append(batch_size_of(batch))
        self._batch_start = now

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Keep a reference to the loss; it is read after the fit, so that nothing waits for it."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, torch.Tensor) and len(self.losses) < _MAX_LOSSES:
            self.losses.append((self._clock() - self._start, loss.detach()))

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """A span that holds a validation is not a batch's."""
        self._drop_span()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """A span over an epoch's boundary is not a batch's."""
        self._drop_span()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Read the metric."""
        if trainer.sanity_checking:
            return
        self.metric = self.metric or pick_metric(trainer.callback_metrics)
        value = trainer.callback_metrics.get(self.metric)
        if value is None:
            wanted = f"no {self.metric!r}" if self.metric else "nothing that starts with 'val'"
            logged = sorted(trainer.callback_metrics) or "nothing"
            self.missing_metric = f"the module logged {wanted} in validation; it logged {logged}"
            return
        self.metrics.append((self._clock() - self._start, float(value)))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Stop the clock and read the peak of memory."""
        self.seconds = self._clock() - self._start
        if trainer.strategy.root_device.type == "cuda":
            self.peak_memory = torch.cuda.max_memory_allocated(trainer.strategy.root_device)
        else:
            peak = measuring.peak_rss_bytes()
            if peak is not None and self._rss is not None:
                self.peak_memory = max(0, peak - self._rss)

    def _drop_span(self) -> None:
        self._batch_start = math.nan
        if self.batch_sizes and len(self.batch_sizes) > len(self.batch_seconds):
            self.batch_sizes.pop()

    def samples_per_second(self) -> float | None:
        """Median batch size over batch seconds, without the first batches; ``None`` if a batch's size is unknown."""
        pairs = list(zip(self.batch_sizes, self.batch_seconds, strict=False))
        pairs = pairs[_WARM_UP_BATCHES:] if len(pairs) > 2 * _WARM_UP_BATCHES else pairs
        rates = [size / seconds for size, seconds in pairs if size is not None and seconds > 0]
        return median(rates) if rates and len(rates) == len(pairs) else None

    def seconds_to_target(self) -> float | None:
        """Seconds at which a validation first saw the target reached."""
        if self.target is None:
            return None
        sign = 1 if direction_of(self.metric, self._mode, self.monitored).mode == "max" else -1
        return next((at for at, value in self.metrics if sign * value >= sign * self.target), None)

    def run(self, variant: str, seed: int, position: int) -> Run:
        """The records of this fit as one run of a report."""
        missing = {}
        rate = self.samples_per_second()
        if rate is None:
            missing["samples_per_second"] = (
                "the size of a batch could not be told, or no two batches followed each other"
            )
        reached = self.seconds_to_target()
        if self.target is not None and reached is None:
            missing["seconds_to_target"] = f"{self.target:g} was not reached in {self.seconds or 0:.0f} s"
        if not self.metrics:
            missing["final_metric"] = self.missing_metric or "no validation ran"
        if self.peak_memory is None:
            missing["peak_memory"] = "this system does not tell the peak of resident memory, or refuses to reset it"
        return Run(
            variant,
            seed,
            position,
            quantities={
                "samples_per_second": rate,
                "train_seconds": self.seconds,
                "seconds_to_target": reached,
                "final_metric": self.metrics[-1][1] if self.metrics else None,
                "peak_memory": self.peak_memory,
            },
            curves={
                "loss": tuple((at, float(loss)) for at, loss in self.losses if loss.numel() == 1),
                **({self.metric: tuple(self.metrics)} if self.metric is not None else {}),
            },
            samples={"batch_seconds": tuple(self.batch_seconds)},
            missing=missing,
            monitored=self.monitored,
        )


def pick_metric(logged: Iterable[str]) -> str | None:
    """Of the names that a module logged: ``val_acc``, ``val_loss``, else the first that starts with ``val``."""
    names = sorted(logged)
    preferred = [name for name in ("val_acc", "val_loss") if name in names]
    return next(iter(preferred + [name for name in names if name.startswith("val")]), None)
