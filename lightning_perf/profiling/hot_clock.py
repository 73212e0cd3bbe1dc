"""The part of the phase clock that runs some fifty times per training step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Hot(NamedTuple):
    """What runs some fifty times per training step."""

    start: Callable[[str], None]
    stop: Callable[[str], None]
    span: Callable[[str], Any]
    charge: Callable[[], float]
    where: Callable[[], tuple[int, int]]
    turn: Callable[[dict[str, int]], None]
    watch: Callable[[Callable[[float, int, str | None], None] | None], None]
    ground: Callable[[int], None]


def hot_functions(clock: Callable[[], float], totals: list[float], learn: Callable[[str], int]) -> Hot:
    """Closures over the clock's state: less than half the time of methods that reach for it through ``self``."""
    stack: list[int] = []
    push, pop = stack.append, stack.pop
    get: Callable[[str], int | None] = {}.get
    tell: Callable[[float, int, str | None], None] | None = None
    current, since = 0, clock()

    def start(action: str) -> None:
        nonlocal current, since
        now = clock()
        phase = get(action)
        if phase is None:
            phase = learn(action)
            now = max(now, since)  # what was charged meanwhile is not charged again
        totals[current] += now - since
        since = now
        push(current)
        current = phase
        if tell is not None:
            tell(now, phase, action)

    def stop(action: str) -> None:
        nonlocal current, since
        now = clock()
        totals[current] += now - since
        since = now
        if stack:
            current = pop()
        if tell is not None:
            tell(now, current, None)

    def span(action: str) -> Any:
        """A context manager that does the work of start and stop itself, to be used again and again."""

        class Span:
            __slots__ = ()

            def __enter__(self) -> str:
                nonlocal current, since
                now = clock()
                phase = get(action)
                if phase is None:
                    phase = learn(action)
                    now = max(now, since)
                totals[current] += now - since
                since = now
                push(current)
                current = phase
                if tell is not None:
                    tell(now, phase, action)
                return action

            def __exit__(self, kind: object, error: object, trace: object) -> None:
                nonlocal current, since
                now = clock()
                totals[current] += now - since
                since = now
                if stack:
                    current = pop()
                if tell is not None:
                    tell(now, current, None)

        return Span()

    def charge() -> float:
        nonlocal since
        now = clock()
        totals[current] += now - since
        since = now
        return now

    def turn(table: dict[str, int]) -> None:
        nonlocal get
        get = table.get

    def watch(listener: Callable[[float, int, str | None], None] | None) -> None:
        nonlocal tell
        tell = listener

    def ground(phase: int) -> None:
        nonlocal current
        if stack:
            stack[0] = phase
        else:
            current = phase

    return Hot(start, stop, span, charge, lambda: (current, len(stack)), turn, watch, ground)
