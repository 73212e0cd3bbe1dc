"""What a module does to learning rates by itself, outside of the schedulers that it returns: seen beforehand, and said."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator
from types import CodeType
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


def sets_rates(module: Any) -> str | None:
    """A line if ``optimizer_step`` is the module's own and speaks of ``"lr"``, as warm-ups written there do."""
    hook = inspect.unwrap(type(module).optimizer_step)
    if hook.__module__.partition(".")[0] in ("lightning", "pytorch_lightning"):
        return None
    code = getattr(hook, "__code__", None)
    if code is not None and not _speaks_of_lr(code):
        return None
    name = type(module).__name__
    return (
        f"{name}.optimizer_step speaks of 'lr'; if it sets learning rates, they hold instead of those asked for here."
    )


def _speaks_of_lr(code: CodeType) -> bool:
    return any(_speaks_of_lr(one) if isinstance(one, CodeType) else one == "lr" for one in code.co_consts)


def left_behind(module: Any, replaced: Optimizer, returned: Collection[Any]) -> Iterator[str]:
    """A line for every scheduler of ``replaced`` that the module keeps without having returned it."""
    for name, one in vars(module).items():
        if isinstance(one, LRScheduler) and one.optimizer is replaced and all(one is not other for other in returned):
            yield (
                f"{type(module).__name__}.{name} ({type(one).__name__}) was not returned by configure_optimizers: it still "
                f"drives the replaced {type(replaced).__name__} and has no effect; return it, or pass one of our schedules."
            )
