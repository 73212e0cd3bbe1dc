"""What local SGD sends: from which device, and again where it failed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode

from lightning_perf.host import Undo
from lightning_perf.strategies import local_sgd, local_steps
from lightning_perf.strategies.local_steps import LocalSteps


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str, torch.dtype, int]]]:
    """Collectives with where their tensor was, its dtype and its elements; ``meta`` stands for an accelerator."""
    found = []

    def noted(name: str) -> Callable[..., None]:
        return lambda flat, **_: found.append((name, flat.device.type, flat.dtype, flat.numel()))

    for name in ("all_reduce", "broadcast"):
        monkeypatch.setattr(dist, name, noted(name))
    monkeypatch.setattr(dist, "get_world_size", lambda: 1)
    with FakeTensorMode():
        yield found


def test_state_on_the_cpu_travels_from_the_device(sent: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Adam counts its steps on the CPU, for which NCCL has no way; one message for a dtype."""
    weight = torch.nn.Parameter(torch.ones(3, 2, device="meta"))
    optimizer = torch.optim.Adam([weight])
    state = {"step": torch.tensor(4.0), "exp_avg": torch.zeros(3, 2, device="meta"), "seen": torch.tensor([1, 2])}
    optimizer.state[weight] = state
    monkeypatch.setattr(dist, "all_gather_object", lambda found, mine: found.__setitem__(0, mine))
    monkeypatch.setattr(dist, "broadcast_object_list", lambda *_, **__: None)
    assert local_sgd.adopt_state([optimizer], torch.device("meta"))
    assert sent == [("broadcast", "meta", torch.float32, 1 + 6), ("broadcast", "meta", torch.int64, 2)]
    assert [tensor.device.type for tensor in state.values()] == ["cpu", "meta", "cpu"]


def test_an_average_travels_from_the_device(sent: list[Any]) -> None:
    shadow = torch.zeros(5)
    local_sgd.average([torch.zeros(4, 4, device="meta"), torch.tensor(3), shadow], torch.device("meta"))
    assert sent == [("all_reduce", "meta", torch.float32, 4 * 4 + 5), ("broadcast", "meta", torch.int64, 1)]
    assert shadow.device.type == "cpu"


def test_state_that_could_not_be_adopted_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the next checkpoint would pass for one that holds the state of all processes."""
    adopt = mock.Mock(side_effect=[False, RuntimeError("gone"), True])
    monkeypatch.setattr(local_steps, "adopt_state", adopt)
    monkeypatch.setattr(local_steps, "exchanging", lambda trainer: nullcontext())
    strategy = SimpleNamespace(optimizers=["one"], root_device=torch.device("cpu"))
    local = LocalSteps(SimpleNamespace(strategy=strategy), local_sgd.LocalPeriod(every=2, warmup=0))
    local.before_backward(SimpleNamespace())
    assert not local.adopt_state()
    with pytest.raises(RuntimeError, match="gone"):
        local.adopt_state()
    assert local.adopt_state()
    assert local.adopt_state()
    assert adopt.mock_calls == [mock.call(["one"], torch.device("cpu"))] * 3


def test_local_steps_have_a_rate_of_their_own() -> None:
    """Three times as far from the third step on; everybody else sees the rates that were given, after a failure too."""
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [weights[0]]}, {"params": [weights[1]], "lr": torch.tensor(0.5)}], lr=0.25)
    period, undo = local_sgd.LocalPeriod(every=2, warmup=2), Undo()
    LocalSteps(SimpleNamespace(), period, rate=3.0).scale([optimizer], undo)
    moved, seen = [], []
    for taken in range(4):
        period.due(taken)
        before = [float(weight.detach()) for weight in weights]
        for weight in weights:
            weight.grad = -torch.ones(1)
        optimizer.step()
        moved.append([float(weight.detach()) - old for weight, old in zip(weights, before, strict=True)])
        seen.append([float(group["lr"]) for group in optimizer.param_groups])
    assert moved == [[0.25, 0.5], [0.25, 0.5], [0.75, 1.5], [0.75, 1.5]]
    assert seen == [[0.25, 0.5]] * 4

    def fail() -> float:
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        optimizer.step(fail)
    undo.run()
    assert [float(group["lr"]) for group in optimizer.param_groups] == [0.25, 0.5]
    for weight in weights:
        weight.grad = -torch.ones(1)
    optimizer.step()
    assert [float(weight.detach()) for weight in weights] == [2.25, 4.5]


@pytest.mark.parametrize("by_name", [True, False])
def test_a_step_reads_and_sets_the_rate_that_is_its_own(by_name: bool) -> None:
    """Lightning's closure runs ``training_step``: it sees 0.25, 0.125, ... and halves it; local steps take it threefold."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.25)
    group, period, undo, seen = optimizer.param_groups[0], local_sgd.LocalPeriod(every=2, warmup=1), Undo(), []

    def closure() -> float:
        seen.append(group["lr"])
        group["lr"] /= 2
        weight.grad = -torch.ones(1)
        return 0.0

    LocalSteps(SimpleNamespace(), period, rate=3.0).scale([optimizer], undo)
    moved = []
    for taken in range(3):
        period.due(taken)
        before = float(weight.detach())
        optimizer.step(closure=closure) if by_name else optimizer.step(closure)
        moved.append(float(weight.detach()) - before)
    undo.run()
    assert seen == [0.25, 0.125, 0.0625]
    assert moved == [0.125, 3 * 0.0625, 3 * 0.03125]
    assert group["lr"] == 0.03125
