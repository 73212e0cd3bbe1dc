"""Shared, undoable wraps of methods of one object: what all doors are made of.

A door wraps a method on the *instance* (never on a class of Lightning). Several callbacks may stand at one door; they
are served in the order of their ``order`` number, and the method is unwrapped when the last of them leaves.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple, TypeAlias
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


class _Guest(NamedTuple):
    """Somebody at a door. ``wrap(values, inner)`` makes the call that serves all guests of one ``kind`` together."""

    order: int
    kind: Any
    value: Any
    wrap: Callable[[list[Any], Callable[..., Any]], Callable[..., Any]]


class _Door:
    """One wrapped method of one object and the guests who stand at it; kinds nest, the smallest order outermost."""

    def __init__(self, target: Any, name: str) -> None:
        self.guests: list[_Guest] = []
        self._target, self._name = target, name
        self._had = vars(target).get(name)
        self._original = self._call = getattr(target, name)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return self._call(*args, **kwargs)  # without guests, because somebody wrapped us in turn: the original

        self._wrapper = wrapper
        vars(target)[name] = wrapper

    def serve(self, guests: list[_Guest]) -> None:
        """From now on these guests stand here; a call that is under way keeps those it began with."""
        self.guests = guests
        kinds: dict[Any, list[_Guest]] = {}
        for guest in sorted(guests, key=lambda one: one.order):
            kinds.setdefault(guest.kind, []).append(guest)
        call = self._original
        for kind in reversed(list(kinds.values())):
            call = kind[0].wrap([guest.value for guest in kind], call)
        self._call = call

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
            f"this release of Lightning has no {_name_of(target)}.{name}; the lever that needs it stays off. "
            "Use a supported release (see the README)."
        ) from None
    if parameters is not None:
        found = tuple(inspect.signature(value).parameters)
        if found[: len(parameters)] != parameters:
            raise DoorClosed(
                f"{_name_of(target)}.{name} takes {found} in this release of Lightning, not {parameters}; the lever "
                "that needs it stays off. Use a supported release (see the README)."
            )
    return value


def _name_of(target: Any) -> str:
    return target.__name__ if isinstance(target, type) else type(target).__name__


def stand_at(
    target: Any, name: str, guest: Any, around: Around, *, order: int = 0, parameters: tuple[str, ...] | None = None
) -> Callable[[], None]:
    """Put ``guest`` at the door ``target.name`` and return the function that takes it away again.

    Args:
        target: the object whose method is wrapped, on the instance.
        name: the method.
        guest: anything; ``around`` decides what it means.
        around: called as ``around(guests, original, args, kwargs)`` in place of the method, with all guests that came with
            the same function.
        order: guests with smaller numbers come first, whatever the order of the callbacks.
        parameters: see :func:`require`.

    Raises:
        DoorClosed: if ``target`` has no such method.
    """

    def wrap(guests: list[Any], inner: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: around(guests, inner, args, kwargs)

    return _enter(target, name, _Guest(order, around.__code__, guest, wrap), parameters)


def wrap_at(
    target: Any, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]], *, order: int = 0
) -> Callable[[], None]:
    """Call ``wrap(method)`` in place of ``target.name``, for what must cost little; returns the function that undoes it.

    Raises:
        DoorClosed: if ``target`` has no such method.
    """
    kind = object()
    return _enter(target, name, _Guest(order, kind, None, lambda guests, inner: wrap(inner)), None)


def _enter(target: Any, name: str, guest: _Guest, parameters: tuple[str, ...] | None) -> Callable[[], None]:
    here = _doors.setdefault(target, {})
    if name not in here:
        require(target, name, parameters=parameters)
        here[name] = _Door(target, name)
    door = here[name]
    door.serve([*door.guests, guest])

    def leave() -> None:
        door.serve([other for other in door.guests if other is not guest])
        if not door.guests and here.get(name) is door:
            door.close()
            del here[name]

    return leave
