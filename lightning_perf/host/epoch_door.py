"""The end of a training epoch, before any callback hears of it, and how far training has come."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning_perf.host.doors import require, stand_at


def at_epoch_end(trainer: Any, guest: Callable[[], None]) -> Callable[[], None]:
    """Have ``guest()`` called after the last batch of every epoch, first of all; returns the function that undoes it."""
    return stand_at(require(trainer, "fit_loop"), "on_advance_end", guest, _serve)


def _serve(guests: list[Any], original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    for guest in guests:
        guest()
    return original(*args, **kwargs)


def batches_that_stepped(trainer: Any) -> int:
    """How many batches have ended in an optimizer step since the run began; several optimizers count once."""
    return require(require(trainer.fit_loop, "epoch_loop"), "_batches_that_stepped")
