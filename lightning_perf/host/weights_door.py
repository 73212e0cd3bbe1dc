"""The weights door: decide what every checkpoint holds, weights-only ones too.

``Callback.on_save_checkpoint`` is skipped by ``save_weights_only=True``; the strategy's
``lightning_module_state_dict`` is not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from lightning_perf.host.doors import stand_at

Guest: TypeAlias = Callable[[dict[str, Any]], dict[str, Any]]


def at_weights_door(trainer: Any, guest: Guest, *, order: int = 0) -> Callable[[], None]:
    """Have ``guest(state_dict) -> state_dict`` applied to the module's weights whenever they are saved.

    The keys must stay those of the user's module, so that the checkpoint loads strictly without us.
    """

    def around(guests: list[Any], original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        state = original(*args, **kwargs)
        for one in guests:
            state = one(state)
        return state

    return stand_at(trainer.strategy, "lightning_module_state_dict", guest, around, order=order, parameters=())
