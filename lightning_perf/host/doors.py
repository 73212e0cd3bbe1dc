"""Shared, undoable wraps of methods of one object: what all doors are made of.

A door wraps a method on the *instance* (never on a class of Lightning). Several callbacks may stand at one door; they
are served in the order of their ``order`` number, and the method is unwrapped when the last of them leaves.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

from lightning_perf.host.namespaces import DoorClosed

Around: TypeAlias = Callable[[list[Any], Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


class Undo:
    """Functions that put things back: run once, last in first out, all of them even if one raises."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def push(self, function: Callable[..., object], *args: Any) -> None:
        """Remember to call ``function(*args)``."""
        self._stack.callback(function, *args)

    def run(self) -> None:
        """Call everything pushed so far and forget it; the first exception is raised after the last call."""
        stack, self._stack = self._stack, ExitStack()
        stack.close()


class _Door:
    """One wrapped method of one object and the guests who stand at it."""

    def __init__(self, target: Any, name: str, around: Around) -> None:
        self.guests: list[tuple[int, Any]] = []
        self._target, self._name = target, name
        self._had = vars(target).get(name)
        original = getattr(target, name)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if not self.guests:  # somebody wrapped us in turn, so we could not be taken off: stay transparent
                return original(*args, **kwargs)
            ordered = [guest for _, guest in sorted(self.guests, key=lambda pair: pair[0])]
            return around(ordered, original, args, kwargs)

        self._wrapper = wrapper
        vars(target)[name] = wrapper

    def close(self) -> None:
        if vars(self._target).get(self._name) is not self._wrapper:
            return
        if self._had is None:
            del vars(self._target)[self._name]
        else:
            vars(self._target)[self._name] = self._had


_doors: WeakKeyDictionary[Any, dict[str, _Door]] = WeakKeyDictionary()


def require(target: Any, name: str, *, parameters: tuple[str, ...] | None = None) -> Any:
    """The attribute ``name`` of ``target``, a private name of Lightning, probed at the moment of use.

    Args:
        target: an object of Lightning.
        name: attribute to look up.
        parameters: the first parameters that a method must have, in order (more are accepted).

    Raises:
        DoorClosed: if this release of Lightning has no such attribute, or one with other parameters.
    """
    try:
        value = getattr(target, name)
    except AttributeError:
        raise DoorClosed(
            f"this release of Lightning has no {type(target).__name__}.{name}; the lever that needs it stays off. "
            "Use a supported release (see the README)."
        ) from None
    if parameters is not None:
        found = tuple(inspect.signature(value).parameters)
        if found[: len(parameters)] != parameters:
            raise DoorClosed(
                f"{type(target).__name__}.{name} takes {found} in this release of Lightning, not {parameters}; the lever "
                "that needs it stays off. Use a supported release (see the README)."
            )
    return value


def stand_at(
    target: Any, name: str, guest: Any, around: Around, *, order: int = 0, parameters: tuple[str, ...] | None = None
) -> Callable[[], None]:
    """Put ``guest`` at the door ``target.name`` and return the function that takes it away again.

    Args:
        target: the object whose method is wrapped, on the instance.
        name: the method.
        guest: anything; ``around`` decides what it means.
        around: called as ``around(guests, original, args, kwargs)`` in place of the method.
        order: guests with smaller numbers come first, whatever the order of the callbacks.
        parameters: see :func:`require`.

    Raises:
        DoorClosed: if ``target`` has no such method.
    """
    here = _doors.setdefault(target, {})
    if name not in here:
        require(target, name, parameters=parameters)
        here[name] = _Door(target, name, around)
    door = here[name]
    entry = (order, guest)
    door.guests.append(entry)

    def leave() -> None:
        door.guests = [other for other in door.guests if other is not entry]
        if not door.guests and here.get(name) is door:
            door.close()
            del here[name]

    return leave
