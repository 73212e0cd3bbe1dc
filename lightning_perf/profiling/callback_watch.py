"""Put a clock beside a training: every place in Lightning where time passes, heard and taken off again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

from lightning_perf.host import Undo, at_timing_door, follow_optimizers, is_a
from lightning_perf.host.doors import stand_at, wrap_at
from lightning_perf.host.log_door import at_log_door
from lightning_perf.host.timing_door import time_calls
from lightning_perf.profiling import phases
from lightning_perf.profiling.phases import PhaseClock

_EPOCH_RESULTS = ("update_train_epoch_metrics", "on_epoch_end")


class _Between:
    """Hears what belongs to no step: validation, checkpoints, the start of workers."""

    def __init__(self, clock: PhaseClock, *, evaluate: bool = False) -> None:
        self._clock, self._evaluate = clock, evaluate

    def start(self, action: str) -> None:
        """It begins."""
        self._clock.leave_steps(action, self._evaluate)

    def stop(self, action: str) -> None:
        """It ends."""
        self._clock.return_to_steps(action)


def listen(trainer: Any, pl_module: Any, clock: PhaseClock, undo: Undo) -> None:
    """Have ``clock`` hear a whole fit, until ``undo`` runs.

    Raises:
        DoorClosed: if this release of Lightning has other loops.
    """
    undo.push(at_timing_door(trainer, clock))
    connector, loop = trainer._logger_connector, trainer.fit_loop
    for name in _EPOCH_RESULTS:
        undo.push(time_calls(connector, name, clock, phases.LOGGING))
    if trainer.loggers:
        undo.push(time_calls(connector, "update_train_step_metrics", clock, phases.LOGGING))
        undo.push(time_calls(connector, "log_metrics", clock, phases.LOGGERS))
    undo.push(at_log_door(pl_module, clock, phases.LOGGING))
    between = _Between(clock)
    undo.push(time_calls(loop, "setup_data", between, phases.WORKER_START))
    undo.push(time_calls(loop.epoch_loop, "on_run_start", between, phases.WORKER_START))
    undo.push(time_calls(trainer, "save_checkpoint", between, phases.CHECKPOINT))
    undo.push(time_calls(loop.epoch_loop.val_loop, "run", _Between(clock, evaluate=True), phases.VALIDATION))
    if not pl_module.automatic_optimization:
        undo.push(time_calls(trainer.strategy, "backward", clock, phases.BACKWARD))


def listen_to_raw_steps(trainer: Any, clock: PhaseClock, undo: Undo) -> None:
    """Have ``clock`` hear steps of optimizers that the module calls itself, past Lightning's wrapper."""

    def begin(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        clock.start(phases.OPTIMIZER)

    def end(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        clock.stop(phases.OPTIMIZER)

    def attach(optimizer: Optimizer) -> Callable[[], None]:
        hooks = Undo()
        hooks.push(optimizer.register_step_pre_hook(begin).remove)
        hooks.push(optimizer.register_step_post_hook(end).remove)
        return hooks.run

    undo.push(follow_optimizers(trainer, attach))


def hear_each_step(trainer: Any, clock: PhaseClock, next_batch: Callable[[], None], undo: Undo) -> None:
    """Have ``next_batch()`` called where one step ends and the next begins: at the loop's request for a batch.

    A ``training_step(dataloader_iter)`` requests its batches itself, in the middle of a step; there it is called before the
    step's first hook.
    """
    if not _draws_its_batches(trainer):
        clock.at_next_batch = next_batch
        return

    def first(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if trainer.training:
                next_batch()
            return original(*args, **kwargs)

        return call

    undo.push(wrap_at(trainer._logger_connector, "on_batch_start", first))


def _draws_its_batches(trainer: Any) -> bool:
    """Whether ``training_step`` takes the loader's iterator in place of a batch."""
    return is_a(trainer.fit_loop._data_fetcher, "_DataLoaderIterDataFetcher")


def count_batches(trainer: Any, clock: PhaseClock, saw: Callable[[Any], None], undo: Undo) -> None:
    """Have ``saw(batch)`` called for every batch that was trained, where Lightning drops its reference to it.

    What Lightning does there, the update of what was logged, is heard as logging.
    """
    loop = trainer.fit_loop
    results, drawing = loop.epoch_loop._results, _draws_its_batches(trainer)
    start, stop = clock.start, clock.stop

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def call() -> Any:
            if not drawing:
                batch = results.batch  # validation has results of its own
            else:  # there the results hold the batch before
                batch = loop._data_fetcher._batch if trainer.training else None
            if batch is not None:
                saw(batch)
            start(phases.LOGGING)
            try:
                return original()
            finally:
                stop(phases.LOGGING)

        return call

    undo.push(wrap_at(trainer._logger_connector, "on_batch_end", counted))


def show_in_progress_bar(trainer: Any, line: Callable[[], dict[str, str]], undo: Undo) -> None:
    """Have the progress bar show ``line()`` beside its own metrics, until ``undo`` runs."""
    bar = trainer.progress_bar_callback
    if bar is None or not hasattr(bar, "get_metrics"):
        return

    def around(guests: list[Any], original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        metrics = dict(original(*args, **kwargs))
        for guest in guests:
            metrics.update(guest())
        return metrics

    undo.push(stand_at(bar, "get_metrics", line, around))
