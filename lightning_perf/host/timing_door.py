"""The timing door: hear every action that the loops report to ``trainer.profiler``, beside the user's own profiler.

The loops look ``trainer.profiler`` up at every use, so a chained one set in ``setup`` hears the whole run. What Lightning
does not report (loggers, validation as a whole, the making of iterators) is heard by wrapping the method on its instance.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from lightning_perf.host.doors import require, wrap_at

_MOST_SPANS = 1024
_EXCHANGE = "[Strategy]PerfDDP.exchange"


class Listener(Protocol):
    """Something that wants to know when an action of the loops starts and stops. Actions nest and repeat."""

    def start(self, action: str, /) -> None: ...

    def stop(self, action: str, /) -> None: ...


class _Span:
    """Context manager of one action, used again at every step; cheaper than Lightning's generator even with a listener."""

    __slots__ = ("_action", "_start", "_stop")

    def __init__(self, action: str, listener: Listener) -> None:
        self._action, self._start, self._stop = action, listener.start, listener.stop

    def __enter__(self) -> str:
        self._start(self._action)
        return self._action

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._stop(self._action)


class _SpanAround(_Span):
    """A span with the user's own profiler inside; good for one use, as theirs is."""

    __slots__ = ("_inner",)

    def __init__(self, action: str, listener: Listener, inner: Any) -> None:
        super().__init__(action, listener)
        self._inner = inner

    def __enter__(self) -> str:
        super().__enter__()
        self._inner.__enter__()
        return self._action

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._inner.__exit__(kind, error, trace)
        super().__exit__(kind, error, trace)


class _Spans(dict[str, Any]):
    """Spans by action, made when first asked for. Looking one up is a dictionary's own work, without a frame of Python."""

    def __init__(self, listener: Listener) -> None:
        super().__init__()
        # A listener that must cost little makes its own context managers and saves a call on either side.
        self._make = getattr(listener, "span", None) or (lambda action: _Span(action, listener))

    def __missing__(self, action: str) -> Any:
        span = self._make(action)
        if len(self) < _MOST_SPANS:
            self[action] = span
        return span


class _Many:
    """Several listeners as one: the first one outermost. Without any: nobody."""

    def __init__(self, listeners: tuple[Listener, ...]) -> None:
        self._listeners = listeners

    def start(self, action: str) -> None:
        """Tell all."""
        for listener in self._listeners:
            listener.start(action)

    def stop(self, action: str) -> None:
        """Tell all, the innermost first."""
        for listener in reversed(self._listeners):
            listener.stop(action)


class ChainedProfiler:
    """The user's profiler with listeners around it; everything else (``describe``, ``setup``, ...) is the user's."""

    #: A context manager around one action.
    profile: Callable[[str], Any]

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self._inner_is_idle = type(inner).__name__ == "PassThroughProfiler"
        self.listeners = ()

    @property
    def listeners(self) -> tuple[Listener, ...]:
        """Those who hear every action, the first one outermost."""
        return self._listeners

    @listeners.setter
    def listeners(self, listeners: tuple[Listener, ...]) -> None:
        self._listeners = listeners
        self._all: Listener = listeners[0] if len(listeners) == 1 else _Many(listeners)
        self.profile = _Spans(self._all).__getitem__ if self._inner_is_idle else self._profile_around

    def start(self, action_name: str) -> None:
        """Forward to the listeners, then to the user's profiler."""
        self._all.start(action_name)
        self.inner.start(action_name)

    def stop(self, action_name: str) -> None:
        """Forward to the user's profiler, then to the listeners."""
        self.inner.stop(action_name)
        self._all.stop(action_name)

    def _profile_around(self, action_name: str) -> _Span:
        return _SpanAround(action_name, self._all, self.inner.profile(action_name))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)


def exchanging(trainer: Any) -> AbstractContextManager[Any]:
    """Tell ``trainer.profiler`` that this process waits for others, as long as the context is open."""
    return trainer.profiler.profile(_EXCHANGE)


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


def time_calls(target: Any, name: str, listener: Listener, action: str) -> Callable[[], None]:
    """Have ``listener`` hear every call of ``target.name`` as ``action``; returns the function that takes it away again.

    Raises:
        DoorClosed: if ``target`` has no such method in this release of Lightning.
    """

    start, stop = listener.start, listener.stop

    def timed(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start(action)
            try:
                return original(*args, **kwargs)
            finally:
                stop(action)

        return call

    return wrap_at(target, name, timed, order=-1)
