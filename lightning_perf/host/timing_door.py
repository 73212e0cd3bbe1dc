"""The timing door: hear every action that the loops report to ``trainer.profiler``, beside the user's own profiler.

The loops look ``trainer.profiler`` up at every use, so a chained one set in ``setup`` hears the whole run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from lightning_perf.host.doors import require


class Listener(Protocol):
    """Something that wants to know when an action of the loops starts and stops. Actions nest and repeat."""

    def start(self, action_name: str) -> None: ...

    def stop(self, action_name: str) -> None: ...


class _Span:
    """Context manager of one action; a class with slots is cheaper than Lightning's generator."""

    __slots__ = ("_action", "_inner", "_listeners")

    def __init__(self, action: str, listeners: tuple[Listener, ...], inner: Any) -> None:
        self._action, self._listeners, self._inner = action, listeners, inner

    def __enter__(self) -> str:
        for listener in self._listeners:
            listener.start(self._action)
        if self._inner is not None:
            self._inner.__enter__()
        return self._action

    def __exit__(self, *exception: object) -> None:
        if self._inner is not None:
            self._inner.__exit__(*exception)
        for listener in reversed(self._listeners):
            listener.stop(self._action)


class ChainedProfiler:
    """The user's profiler with listeners around it; everything else (``describe``, ``setup``, ...) is the user's."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.listeners: tuple[Listener, ...] = ()
        self._inner_is_idle = type(inner).__name__ == "PassThroughProfiler"

    def start(self, action_name: str) -> None:
        """Forward to the listeners, then to the user's profiler."""
        for listener in self.listeners:
            listener.start(action_name)
        self.inner.start(action_name)

    def stop(self, action_name: str) -> None:
        """Forward to the user's profiler, then to the listeners."""
        self.inner.stop(action_name)
        for listener in reversed(self.listeners):
            listener.stop(action_name)

    def profile(self, action_name: str) -> _Span:
        """A context manager around one action."""
        return _Span(action_name, self.listeners, None if self._inner_is_idle else self.inner.profile(action_name))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)


_chains: WeakKeyDictionary[Any, ChainedProfiler] = WeakKeyDictionary()


def at_timing_door(trainer: Any, listener: Listener) -> Callable[[], None]:
    """Have ``listener`` hear every action of this Trainer; returns the function that takes it away again.

    Raises:
        DoorClosed: if this release of Lightning has no ``trainer.profiler``.
    """
    chain = _chains.get(trainer)
    if chain is None:
        chain = _chains[trainer] = ChainedProfiler(require(trainer, "profiler"))
        trainer.profiler = chain
    chain.listeners = (*chain.listeners, listener)

    def leave() -> None:
        chain.listeners = tuple(other for other in chain.listeners if other is not listener)
        if not chain.listeners and _chains.get(trainer) is chain:
            del _chains[trainer]
            if trainer.profiler is chain:
                trainer.profiler = chain.inner

    return leave
