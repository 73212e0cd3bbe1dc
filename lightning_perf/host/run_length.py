"""How long a fit is and how often it validates, set for one run; and Ctrl-C during a fit, handed on."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from lightning_perf.host.doors import require
from lightning_perf.host.namespaces import is_a


def set_run_length(trainer: Any, steps: int, validate_every: int) -> Callable[[], None]:
    """End a fit after ``steps`` optimizer steps, and validate after every ``validate_every`` batches.

    The Trainer's own limits still hold where they come first; its minima do not. To be called in ``setup`` or before:
    whatever asks for ``trainer.estimated_stepping_batches`` later is told this run's length. Returns what puts the settings
    back.

    Raises:
        DoorClosed: this release of Lightning keeps a setting elsewhere.
    """
    loop = require(trainer, "fit_loop")
    batches = require(loop, "epoch_loop")
    own = own_max_steps(trainer)
    settings = [
        (batches, "max_steps", steps if own == -1 else min(steps, own)),
        (batches, "min_steps", None),
        (loop, "min_epochs", None),
        (trainer, "check_val_every_n_epoch", None),
        (trainer, "val_check_interval", validate_every),
    ]
    if hasattr(trainer, "_val_check_time_interval"):  # Lightning 2.6 and later
        settings.append((trainer, "_val_check_time_interval", None))
    before = [(owner, name, require(owner, name)) for owner, name, _ in settings]
    for owner, name, value in settings:
        setattr(owner, name, value)

    def put_back() -> None:
        for owner, name, value in before:
            setattr(owner, name, value)

    return put_back


def own_max_steps(trainer: Any) -> int:
    """The Trainer's limit of optimizer steps; -1 for none."""
    return int(require(require(require(trainer, "fit_loop"), "epoch_loop"), "max_steps"))


def accumulation_by_epoch(trainer: Any) -> dict[int, int]:
    """Batches per optimizer step from each epoch on, such as ``{0: 4}``, in the order of the epochs.

    A GradientAccumulationScheduler sets the Trainer's number only when an epoch starts, so it is asked itself.
    """
    schedulers = [callback for callback in trainer.callbacks if is_a(callback, "GradientAccumulationScheduler")]
    if not schedulers:
        return {0: trainer.accumulate_grad_batches}
    return dict(sorted({0: 1, **schedulers[-1].scheduling}.items()))


def accumulation_in(trainer: Any, epoch: int) -> int:
    """Batches per optimizer step in ``epoch``, also before it starts."""
    return next(factor for start, factor in reversed(accumulation_by_epoch(trainer).items()) if start <= epoch)


def steps_of_epochs(batches: int, epochs: int, accumulation: Mapping[int, int]) -> int:
    """Optimizer steps of ``epochs`` of ``batches`` each; the last ones of an epoch make a step, however few they are.

    Example::
        >>> steps_of_epochs(10, 3, {0: 1, 2: 4})
        23
    """
    starts = [start for start in sorted(accumulation) if start < epochs]
    spans = zip(starts, [*starts[1:], epochs], strict=False)
    return sum(math.ceil(batches / accumulation[start]) * (end - start) for start, end in spans)


def optimizer_steps(trainer: Any) -> int | float:
    """``trainer.estimated_stepping_batches``, which takes no note of a GradientAccumulationScheduler, with one counted in.

    Makes the loaders, if need be; without a known length, infinity or ``max_steps``, as Lightning has it.
    """
    estimate = trainer.estimated_stepping_batches
    batches, epochs, most = trainer.num_training_batches, trainer.max_epochs, trainer.max_steps
    accumulation = accumulation_by_epoch(trainer)
    if epochs in (None, -1) or math.isinf(batches) or accumulation == {0: trainer.accumulate_grad_batches}:
        return estimate
    steps = steps_of_epochs(int(batches), max(epochs, 1), accumulation)
    return steps if most == -1 else min(steps, most)


def configured_steps(trainer: Any, max_steps: int) -> int | None:
    """Optimizer steps of a whole training under ``max_steps`` and the Trainer's other limits; None if there is no end.

    To be called while the fit runs, when the loaders exist.
    """
    epoch_loop = trainer.fit_loop.epoch_loop
    limited, epoch_loop.max_steps = epoch_loop.max_steps, max_steps
    try:
        steps = optimizer_steps(trainer)
    finally:
        epoch_loop.max_steps = limited
    return int(steps) if 0 < steps < float("inf") else None


class Progress(NamedTuple):
    """How far a fit is: steps done, steps in all (infinite if there is no end), and the part of the run that is done.

    A step is a step of the optimizer; under manual optimization, where there may be several, a training batch.
    """

    step: int
    total: float
    fraction: float


def fraction_done(trainer: Any, batches: int) -> float:
    """The part of a fit that is done after ``batches`` of this epoch, by epochs or by steps, whichever ends it first.

    Every epoch is an equal part of the run, however many batches it has; one of unknown length counts once it is over.
    """
    epochs, per_epoch = trainer.max_epochs, trainer.num_training_batches
    by_steps = 0.0 if trainer.max_steps == -1 else trainer.global_step / trainer.max_steps if trainer.max_steps else 1.0
    if epochs in (None, -1):
        by_epochs = 0.0
    elif math.isinf(per_epoch):
        by_epochs = trainer.current_epoch / epochs if epochs else 1.0
    else:
        whole = per_epoch * epochs
        by_epochs = (trainer.current_epoch * per_epoch + batches) / whole if whole else 1.0
    return min(max(by_epochs, by_steps), 1.0)


def progress_of(trainer: Any, *, starting: bool = False) -> Progress:
    """How far a fit is by its limits of epochs and steps, whichever comes first; 0 of an endless run is done.

    To be called while the fit runs, when the loaders exist. Earlier epochs of a resumed run count.

    Args:
        trainer: of the fit.
        starting: whether this is ``on_train_start``, where the last batch of an epoch is of one that is over.
    """
    automatic = trainer.lightning_module.automatic_optimization
    epochs = trainer.max_epochs if trainer.max_epochs not in (None, -1) else math.inf
    batches = trainer.fit_loop.total_batch_idx + 1
    all_batches = trainer.num_training_batches * epochs
    steps = trainer.max_steps if trainer.max_steps != -1 else math.inf
    this_epoch = trainer.fit_loop.epoch_loop.batch_progress
    over = starting and this_epoch.is_last_batch
    fraction = fraction_done(trainer, 0 if over else this_epoch.current.ready)
    if not automatic:
        return Progress(batches, min(all_batches, steps), fraction)
    limited = math.inf
    if not math.isinf(all_batches):
        limited = steps_of_epochs(trainer.num_training_batches, int(epochs), accumulation_by_epoch(trainer))
    return Progress(trainer.global_step, min(limited, steps), fraction)


def is_accumulating(trainer: Any) -> bool:
    """At the end of a batch: whether its gradients wait for those of later batches before there is a step."""
    return trainer.lightning_module.automatic_optimization and require(trainer.fit_loop, "_should_accumulate")()


@contextmanager
def interruptible(trainer: Any) -> Iterator[None]:
    """Ctrl-C during a fit inside is a KeyboardInterrupt outside.

    Lightning exits the process instead, and leaves it deaf for further interrupts.
    """
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if in_main else None
    try:
        yield
    except SystemExit as exit_:
        if str(getattr(trainer.state.status, "value", trainer.state.status)) == "interrupted":
            raise KeyboardInterrupt from exit_
        raise
    finally:
        if in_main and handler is not None:
            signal.signal(signal.SIGINT, handler)
