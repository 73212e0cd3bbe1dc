"""The optimizers of a fit, followed step by step, also those that take another's place while it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from lightning_perf.host.doors import Undo
from lightning_perf.host.optimizer_door import raw


def is_of_the_run(strategy: Any, optimizer: Optimizer) -> bool:
    """Whether the strategy holds an optimizer now."""
    return any(raw(one) is optimizer for one in strategy.optimizers)


def follow_optimizers(trainer: Any, attach: Callable[[Optimizer], Callable[[], object]]) -> Callable[[], None]:
    """Have ``attach(optimizer)`` put hooks on every optimizer of the run, right before the first step it takes.

    ``trainer.optimizers`` is an attribute that modules and callbacks may set at any time, and Lightning tells nobody. So
    each step of any optimizer of torch's in this process asks whether it is a new one of the run. Hooks that ``attach``
    registers take part in that step; what was attached first comes first. Wrappers without torch's hooks are not seen.

    Args:
        trainer: the Trainer; of other strategies it may be lent to, nothing is followed.
        attach: returns what takes the hooks off again.

    Returns:
        what takes everything off.
    """
    strategy, undo = trainer.strategy, Undo()
    known: WeakSet[Optimizer] = WeakSet()

    def before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if optimizer not in known and is_of_the_run(strategy, optimizer):
            known.add(optimizer)
            undo.push(attach(optimizer))

    undo.push(register_optimizer_step_pre_hook(before_step).remove)
    return undo.run
