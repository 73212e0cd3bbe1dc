"""The step door: stand around the strategy's steps and ``backward``.

For what must be seen in a real step on a real batch: no batch exists at the module door.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

from lightning_perf.host.doors import stand_at

StepName: TypeAlias = Literal[
    "training_step", "backward", "optimizer_step", "validation_step", "test_step", "predict_step"
]
Guest: TypeAlias = Callable[[Callable[[], Any]], Any]


def at_step_door(trainer: Any, name: StepName, guest: Guest, *, order: int = 0) -> Callable[[], None]:
    """Have ``guest(step)`` called in place of every step called ``name``; it must return ``step()``'s result."""

    def around(guests: list[Any], original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        def innermost() -> Any:
            return original(*args, **kwargs)

        step: Callable[[], Any] = innermost
        for one in reversed(guests):
            step = _bind(one, step)
        return step()

    return stand_at(trainer.strategy, name, guest, around, order=order)


def _bind(guest: Guest, step: Callable[[], Any]) -> Callable[[], Any]:
    return lambda: guest(step)
