"""The evaluation door: the moments of a fit at which the module is evaluated, whatever the order of the callbacks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from lightning_perf.host.doors import Undo, require, stand_at


def at_evaluation_door(
    trainer: Any,
    undo: Undo,
    *,
    around: Callable[[], AbstractContextManager[object]],
    at_end: Callable[[], None],
    order: int = 0,
) -> None:
    """Stand around everything in a fit that evaluates, until ``undo`` runs.

    Args:
        trainer: the Trainer.
        undo: takes the functions away again.
        around: makes a context manager for each validation and the sanity check, outside of every hook of theirs.
        at_end: called after the last step, before every ``on_train_end`` hook.
        order: guests with smaller numbers come first.

    Raises:
        DoorClosed: if this release of Lightning has its loops elsewhere.
    """

    def evaluate(guests: list[Any], original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        with ExitStack() as stack:
            for guest in guests:
                stack.enter_context(guest())
            return original(*args, **kwargs)

    def end(guests: list[Any], original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        for guest in guests:
            guest()
        return original(*args, **kwargs)

    validation = require(require(trainer.fit_loop, "epoch_loop"), "val_loop")
    undo.push(stand_at(validation, "run", around, evaluate, order=order, parameters=()))
    undo.push(stand_at(trainer.fit_loop, "on_run_end", at_end, end, order=order, parameters=()))
