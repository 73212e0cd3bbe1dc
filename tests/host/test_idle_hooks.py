"""Callbacks that leave a batch's hooks empty: Lightning skips them for the time of a run, and nobody else notices."""

from __future__ import annotations

import pickle
from types import ModuleType
from typing import Any

import pytest
import torch

from lightning_perf.host import PerfCallback, at_timing_door
from lightning_perf.host.doors import stand_at, wrap_at
from lightning_perf.host.log_door import at_log_door
from lightning_perf.host.timing_door import time_calls
from tests.contract.modules import images, make


class Idle(PerfCallback):
    """Uses one hook of a batch and leaves the others empty."""

    def __init__(self) -> None:
        super().__init__()
        self.batches = 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self.batches += 1


class Heard:
    def __init__(self) -> None:
        self.actions: list[str] = []

    def start(self, action: str, /) -> None:
        self.actions.append(action)

    def stop(self, action: str, /) -> None:
        self.actions.append(f"/{action}")


class Listening(PerfCallback):
    def __init__(self, heard: Heard) -> None:
        super().__init__()
        self.heard = heard

    def engage(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.undo(trainer).push(at_timing_door(trainer, self.heard))


def test_empty_hooks_are_not_called_and_come_back(ns: ModuleType, quiet: dict[str, Any]) -> None:
    idle, heard = Idle(), Heard()
    inside: list[Any] = []

    class Inside(ns.Callback):  # type: ignore[misc, name-defined]
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            inside.append((idle.on_train_batch_start, pickle.loads(pickle.dumps(idle)).on_train_batch_start))

    trainer = ns.Trainer(**quiet, max_epochs=1, callbacks=[idle, Listening(heard), Inside()])
    trainer.fit(make("plain", ns), images(), images(8))
    hooks = {action.rpartition(".")[2] for action in heard.actions if action.startswith("[Callback]Idle")}
    assert "on_train_batch_end" in hooks
    assert not hooks & {"on_train_batch_start", "on_before_backward", "on_after_backward", "on_validation_batch_start"}
    assert idle.batches == 6
    assert inside[0][0] is None
    assert callable(inside[0][1]), "a pickled callback has all its hooks"
    assert callable(idle.on_train_batch_start)
    assert "on_train_batch_start" not in vars(idle)


class Target:
    def method(self, value: int) -> int:
        return value + 1


def test_guests_of_several_kinds_nest_and_leave_in_any_order() -> None:
    """Around (order 0) inside of timing (order -1), two around-guests served together, one wrap beside."""
    target, heard, seen = Target(), Heard(), []

    def around(guests: list[Any], original: Any, args: Any, kwargs: Any) -> Any:
        seen.append((list(guests), list(heard.actions)))
        return original(*args, **kwargs) * 10

    leave_first = stand_at(target, "method", "a", around)
    leave_time = time_calls(target, "method", heard, "call")
    leave_second = stand_at(target, "method", "b", around, order=-5)
    leave_wrap = wrap_at(target, "method", lambda inner: lambda value: inner(value) + 5, order=9)
    assert target.method(1) == (1 + 1 + 5) * 10
    assert seen == [(["b", "a"], [])], "the kind with the smallest order is outermost"
    assert heard.actions == ["call", "/call"]
    leave_first()
    leave_second()
    assert target.method(1) == 1 + 1 + 5
    leave_wrap()
    leave_time()
    assert target.method(1) == 2
    assert "method" not in vars(target)


def test_timed_calls_end_on_an_exception() -> None:
    class Failing:
        def method(self) -> None:
            raise RuntimeError("planted")

    target, heard = Failing(), Heard()
    time_calls(target, "method", heard, "call")
    with pytest.raises(RuntimeError, match="planted"):
        target.method()
    assert heard.actions == ["call", "/call"]


def test_log_doors_nest_and_leave_in_any_order(ns: ModuleType) -> None:
    module, outer, inner = make("plain", ns), Heard(), Heard()
    leave_inner = at_log_door(module, inner, "log")
    leave_outer = at_log_door(module, outer, "log")
    with torch.no_grad():
        module.log("x", 1.0)  # without a Trainer Lightning only warns
    assert inner.actions == outer.actions == ["log", "/log"]
    leave_inner()
    module.log("x", 1.0)
    assert (len(inner.actions), len(outer.actions)) == (2, 4)
    leave_outer()
    assert "log" not in vars(module)
