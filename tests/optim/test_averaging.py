"""Averages by hand, weights exchanged and put back to the bit, fingerprints."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from lightning_perf.optim.averaging import Averages, Ema, EvaluationWeights, fingerprint
from tests.optim.literal_schedule_free import LiteralScheduleFreeSGD


def values(ema: Ema) -> list[float]:
    return [float(average) for _, average in ema.evaluation_weights()]


def test_ema_by_hand() -> None:
    """Weights of the updates: 1, 9/10, 9/11, ...: the first value itself, and nothing of the initial one."""
    weight = nn.Parameter(torch.tensor([100.0], dtype=torch.float64))
    ema = Ema(0.999)
    assert values(ema) == []
    seen, expected = [2.0, 12.0, 6.0], [2.0, 11.0, 11.0 + (6.0 - 11.0) * 9 / 11]
    for value, average in zip(seen, expected, strict=True):
        weight.data.fill_(value)
        ema.update([weight])
        assert values(ema) == [pytest.approx(average, rel=1e-12)]


def test_ema_becomes_exponential() -> None:
    """With decay 0.5 the weight 9 / (k + 8) falls to 0.5 at update 10 and stays there: a naive loop."""
    weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    ema, average = Ema(0.5), 0.0
    for k in range(1, 30):
        value = float(k * k % 7)
        weight.data.fill_(value)
        ema.update([weight])
        share = 9 / (k + 8) if k < 10 else 0.5
        average = (1 - share) * average + share * value
    assert values(ema) == [pytest.approx(average, rel=1e-12)]


def test_a_short_run_is_not_held_back_by_its_start() -> None:
    """100 steps from 1000 to 0: the plain average at 0.999 would still stand at 900."""
    weight = nn.Parameter(torch.zeros(1))
    ema = Ema(0.999)
    for k in range(100):
        weight.data.fill_(1000.0 if k == 0 else 0.0)
        ema.update([weight])
    assert values(ema)[0] < 1e-6


def test_ema_keeps_low_precision_in_float32() -> None:
    """Steps of a thousandth vanish when added up in bfloat16."""
    weight = nn.Parameter(torch.tensor([1.0], dtype=torch.bfloat16))
    ema = Ema(0.999)
    for value in [1.0] + [2.0] * 500:
        weight.data.fill_(value)
        ema.update([weight])
    ((_, average),) = ema.evaluation_weights()
    assert average.dtype == torch.bfloat16
    assert float(average) > 1.9
    assert next(iter(ema.state_dict({weight: "w"})["averages"].values())).dtype == torch.float32


def test_ema_follows_raw_steps_and_counts_per_parameter() -> None:
    """Two optimizers at different rates, a tied weight, a frozen parameter, one thawed late."""
    fast, slow, frozen = (nn.Parameter(torch.tensor([1.0])) for _ in range(3))
    frozen.requires_grad_(False)
    one, two = torch.optim.SGD([fast, frozen], lr=1.0), torch.optim.SGD([slow], lr=1.0)
    ema = Ema(0.9)
    handles = [ema.follow(one), ema.follow(two)]
    for step in range(4):
        for parameter in (fast, slow):
            parameter.grad = torch.ones(1)
        one.step()
        if step % 2:
            two.step()
    assert ema.state_dict({fast: "f", slow: "s", frozen: "z"})["updates"] == {"f": 4, "s": 2}
    frozen.requires_grad_(True)
    one.step()
    assert ema.state_dict({fast: "f", frozen: "z"})["updates"] == {"f": 5, "z": 1}
    for handle in handles:
        handle.remove()
    one.step()
    assert ema.state_dict({fast: "f"})["updates"] == {"f": 5}


def test_ema_goes_on_from_its_state() -> None:
    weight, other = nn.Parameter(torch.tensor([1.0])), nn.Parameter(torch.tensor([1.0]))
    whole, first, second = Ema(0.9), Ema(0.9), Ema(0.9)
    for k in range(10):
        weight.data.fill_(float(k))
        whole.update([weight])
        (first if k < 6 else second).update([weight])
        if k == 5:
            state = copy.deepcopy(first.state_dict({weight: "w", other: "o"}))
            second.load_state_dict(state, {weight: "w", other: "o"})
    assert values(second) == values(whole)


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1, 2, True, float("nan")])
def test_bad_decay(decay: float) -> None:
    with pytest.raises(ValueError, match=r"ema=.*between 0 and 1, such as 0\.999"):
        Ema(decay)


def test_exchange_puts_everything_back() -> None:
    """Values, identity, storage, strides, gradients; a parameter that comes twice keeps its first training weights."""
    weight = nn.Parameter(torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last))
    weight.grad = torch.randn_like(weight)
    before = (weight.data_ptr(), weight.stride(), weight.detach().clone(), weight.grad.clone())
    average = torch.randn(2, 3, 4, 4)
    exchange = EvaluationWeights(lambda: [(weight, average), (weight, average + 1)])
    exchange.enter()
    exchange.enter()
    assert torch.equal(weight, average)
    assert torch.equal(exchange.training_weights()[weight], before[2])
    with exchange.in_place():
        assert torch.equal(weight, average)
    assert exchange.entered
    exchange.leave()
    exchange.leave()
    assert (weight.data_ptr(), weight.stride()) == before[:2]
    assert torch.equal(weight, before[2])
    assert torch.equal(weight.grad, before[3])
    assert not exchange.entered


def test_exchange_survives_exceptions() -> None:
    first, second = nn.Parameter(torch.tensor([1.0])), nn.Parameter(torch.tensor([2.0]))

    def broken() -> Iterator[tuple[Tensor, Tensor]]:
        yield first, torch.tensor([9.0])
        raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        EvaluationWeights(broken).enter()
    assert (float(first), float(second)) == (1.0, 2.0)
    with (
        pytest.raises(RuntimeError, match="inside"),
        EvaluationWeights(lambda: [(first, torch.tensor([9.0]))]).in_place(),
    ):
        raise RuntimeError("inside")
    assert float(first) == 1.0


def test_the_literal_optimizer_is_understood() -> None:
    """x of schedule-free SGD is the mean of z: after one step z itself."""
    weight = nn.Parameter(torch.tensor([1.0]))
    optimizer = LiteralScheduleFreeSGD([weight], lr=0.5)
    assert isinstance(optimizer, Averages)
    assert not isinstance(torch.optim.SGD([weight]), Averages)
    weight.grad = torch.tensor([1.0])
    assert list(optimizer.evaluation_weights()) == []
    optimizer.step()
    ((_, x),) = optimizer.evaluation_weights()
    assert float(x) == pytest.approx(0.5)


def test_fingerprint() -> None:
    tensor = torch.randn(3, 5)
    assert fingerprint(tensor) == fingerprint(tensor.t().contiguous().t())
    changed = tensor.clone()
    changed[2, 1] += 1e-6
    assert fingerprint(changed) != fingerprint(tensor)
    assert fingerprint(torch.tensor(1 + 2j)) == fingerprint(torch.tensor([1.0, 2.0]))
    assert fingerprint(torch.zeros(0)) == 0
