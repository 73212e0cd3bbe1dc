"""The weights door: decide what every checkpoint holds, weights-only ones too.

``Callback.on_save_checkpoint`` is skipped by ``save_weights_only=True``; the strategy's
``lightning_module_state_dict`` is not.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, NamedTuple, TypeAlias

from lightning_perf.host.doors import stand_at

Guest: TypeAlias = Callable[[dict[str, Any]], dict[str, Any]]
Around: TypeAlias = Callable[[], AbstractContextManager[object]]


class _Visit(NamedTuple):
    guest: Guest
    around: Around


def at_weights_door(trainer: Any, guest: Guest, *, around: Around = nullcontext, order: int = 0) -> Callable[[], None]:
    """Have ``guest(state_dict) -> state_dict`` applied to the module's weights whenever they are saved.

    The keys must stay those of the user's module, so that the checkpoint loads strictly without us.

    Args:
        trainer: the Trainer.
        guest: gets the weights and returns those to save.
        around: makes a context manager that is open while the module is asked for its weights and the guests see them.
        order: guests with smaller numbers come first.
    """

    def serve(visits: list[_Visit], original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        with ExitStack() as stack:
            for visit in visits:
                stack.enter_context(visit.around())
            state = original(*args, **kwargs)
            for visit in visits:
                state = visit.guest(state)
            return state

    visit = _Visit(guest, around)
    return stand_at(trainer.strategy, "lightning_module_state_dict", visit, serve, order=order, parameters=())
