"""When values logged with ``sync_dist=True`` start an all-reduce, and when they do not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from lightning_perf.host.fused_sync import _SYNC, FusedSync, _settling


class Connector:
    """Stands for Lightning's, whose ``metrics`` are what was logged."""

    _first_loop_iter = False
    trainer = SimpleNamespace(_results=None)

    def __init__(self, logged: list[torch.Tensor]) -> None:
        self.logged = logged

    @property
    def metrics(self) -> list[float]:
        return [float(value) for value in self.logged]


def test_reading_in_a_step_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """One rank may read between two values that all log; both go in one message when the step is over."""
    messages: list[int] = []

    def doubled(totals: torch.Tensor, **_: Any) -> Any:
        messages.append(totals.numel())
        totals *= 2
        return SimpleNamespace(wait=lambda: None)

    monkeypatch.setattr(dist, "all_reduce", doubled)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    sync = FusedSync(torch.device("cpu"), reduce=lambda *_, **__: pytest.fail("not to be reduced by itself"))
    logged: list[torch.Tensor] = []
    connector: Any = Connector(logged)
    connector.__dict__[_SYNC] = sync
    connector.__class__ = _settling(Connector)
    with sync.step():
        logged.append(sync.later(torch.tensor(3.0), reduce_op="sum"))
        assert connector.metrics == [3.0]
        logged.append(sync.later(torch.tensor(5.0), reduce_op="sum"))
        assert messages == []
    assert connector.metrics == [6.0, 10.0]
    assert messages == [2]
