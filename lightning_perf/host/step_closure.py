"""What has to happen in an optimizer's step once gradients are there: with Lightning, at the end of the step's closure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

HookResult = tuple[tuple[Any, ...], dict[str, Any]] | None


def behind_closure(
    args: tuple[Any, ...], kwargs: dict[str, Any], act: Callable[[], None], *, before: Callable[[], None] | None = None
) -> HookResult:
    """The result of a step pre-hook of torch's: ``act`` runs now, or at the end of the closure that computes gradients.

    Lightning's closure runs the user's step. ``before`` runs in front of each call of the closure, which may be called
    more than once in a step.
    """
    in_args = len(args) > 1  # args[0] is the optimizer
    closure = args[1] if in_args else kwargs.get("closure")
    if closure is None:
        act()
        return None

    def closure_and_more() -> Any:
        if before is not None:
            before()
        loss = closure()
        act()
        return loss

    if in_args:
        return (args[0], closure_and_more, *args[2:]), kwargs
    return args, {**kwargs, "closure": closure_and_more}
