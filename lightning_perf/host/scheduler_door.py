"""The scheduler door: stand before ``LightningModule.lr_scheduler_step`` on one module."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import CodeType, MethodType
from typing import Any

_SLOT = "lr_scheduler_step"


class SchedulerDoor:
    """Steps the schedulers of a guest; all others go to the module's hook. Copies and pickles get that hook alone."""

    def __init__(self, module: Any, is_ours: Callable[[Any], bool]) -> None:
        self._module, self._is_ours = module, is_ours
        self._inner: Any = vars(module).get(_SLOT)
        self._hook: Any = getattr(module, _SLOT)

    @property
    def __code__(self) -> CodeType:
        """What Lightning compares with its own, to see whether the hook is the module's."""
        return self._hook.__code__

    def __call__(self, scheduler: Any, metric: Any) -> None:
        if self._is_ours(scheduler):
            scheduler.step()
        else:
            self._hook(scheduler, metric)

    def take_off(self) -> None:
        """Give the module back what it held."""
        attributes = vars(self._module)
        if attributes.get(_SLOT) is not self:
            return
        if self._inner is None:
            del attributes[_SLOT]
        else:
            attributes[_SLOT] = self._inner

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if self._inner is not None:
            return copy.deepcopy(self._inner, memo)
        module = memo.get(id(self._module), self._module)
        return MethodType(type(module).lr_scheduler_step, module)

    def __reduce__(self) -> Any:
        return getattr, (self._module, _SLOT)


def at_scheduler_door(module: Any, is_ours: Callable[[Any], bool]) -> Callable[[], None]:
    """Step those schedulers that are ours without the module's hook; returns the function that ends it."""
    door = SchedulerDoor(module, is_ours)
    vars(module)[_SLOT] = door
    return door.take_off
