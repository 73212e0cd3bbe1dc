"""The log door: stand around ``LightningModule.log`` on one module, outside of whatever shortens it."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch

from lightning_perf.host.timing_door import Listener

_SLOT = "log"


class LogDoor:
    """Tells a listener when ``log`` begins and ends. Copies and pickles of the module get their own, plain method."""

    def __init__(self, module: Any, listener: Listener, action: str) -> None:
        self._module, self._listener, self._action = module, listener, action
        self._plain = MethodType(type(module).log, module)
        self._untraced: Any = torch.compiler.disable(self._plain)
        #: What the module's instance holds behind this door, such as a shorter path; ``None``: its class's method.
        self.inner: Any = vars(module).get(_SLOT)

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        if torch.compiler.is_compiling():  # Dynamo must not trace a clock; it stops here
            return self._untraced(*args, **kwargs)
        self._listener.start(self._action)
        try:
            return (self._plain if self.inner is None else self.inner)(*args, **kwargs)
        finally:
            self._listener.stop(self._action)

    def take_off(self) -> None:
        """Give the module back what it held."""
        attributes, key = vars(self._module), _SLOT
        while attributes.get(key) is not self:
            outer = attributes.get(key)
            if not isinstance(outer, LogDoor):
                return
            attributes, key = vars(outer), "inner"
        if self.inner is None and key == _SLOT:
            del attributes[key]
        else:
            attributes[key] = self.inner

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        module = memo.get(id(self._module), self._module)
        return MethodType(type(module).log, module)

    def __reduce__(self) -> Any:
        return getattr, (self._module, _SLOT)


def at_log_door(module: Any, listener: Listener, action: str) -> Callable[[], None]:
    """Have ``listener`` hear every ``module.log`` as ``action``; returns the function that takes it away again."""
    door = LogDoor(module, listener, action)
    vars(module)[_SLOT] = door
    return door.take_off


def innermost_log(module: Any) -> tuple[dict[str, Any], str]:
    """The place behind all log doors where a shorter ``log`` belongs: a namespace and the key in it."""
    attributes, key = vars(module), _SLOT
    while isinstance(attributes.get(key), LogDoor):
        attributes, key = vars(attributes[key]), "inner"
    return attributes, key
