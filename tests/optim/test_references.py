"""Every optimizer of our own equals its literal reference over 100 steps, in float32 and in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_perf.optim import blocks
from lightning_perf.optim.ademamix import AdEMAMix
from lightning_perf.optim.lion import Lion
from lightning_perf.optim.muon import Muon
from lightning_perf.optim.prodigy import Prodigy
from lightning_perf.optim.schedule_free import ScheduleFreeAdamW, ScheduleFreeSGD
from lightning_perf.optim.soap import SOAP
from tests.optim import references

STEPS = 100
SHAPES = [(7,), (4, 5), (4, 2, 2, 1), (), (6, 6)]

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


@pytest.fixture
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Elements of a block: 4 cuts nearly every tensor, the default gathers all of them."""
    monkeypatch.setattr(blocks, "_CPU_BLOCK", request.param)
    return request.param


both = pytest.mark.parametrize("size", [4, blocks._CPU_BLOCK], ids=["sliced", "gathered"], indirect=True)


def starting_points(dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in SHAPES]


def gradients(t: int, parameters: list[Tensor]) -> list[Tensor]:
    """Of a noisy bowl, so that every error comes back through the parameters."""
    generator = torch.Generator().manual_seed(t)
    return [
        0.4 * (each + 2) + 0.5 * torch.randn(each.shape, generator=generator, dtype=torch.float64).to(each.dtype)
        for each in parameters
    ]


def run(make: Callable[[list[nn.Parameter]], Optimizer], dtype: torch.dtype) -> tuple[list[nn.Parameter], Optimizer]:
    parameters = [nn.Parameter(each.clone()) for each in starting_points(dtype)]
    optimizer = make(parameters)
    for t in range(1, STEPS + 1):
        for parameter, gradient in zip(parameters, gradients(t, [p.detach() for p in parameters]), strict=True):
            parameter.grad = gradient
        optimizer.step()
    return parameters, optimizer


def assert_equal(found: list[Any], expected: list[Tensor], tolerance: float = 1.0) -> None:
    start = starting_points(expected[0].dtype)
    for left, right, first in zip(found, expected, start, strict=True):
        rounding = (2e-5 if right.dtype == torch.float32 else 1e-12) * tolerance
        torch.testing.assert_close(left.detach(), right, rtol=rounding, atol=rounding)
        assert (right - first).abs().max() > 0.1  # the comparison is not one of starting points


@dtypes
@both
def test_lion(dtype: torch.dtype, size: int) -> None:
    settings: dict[str, Any] = {"lr": 0.02, "betas": (0.9, 0.97), "weight_decay": 0.3}
    found, _ = run(lambda parameters: Lion(parameters, **settings), dtype)
    assert_equal(found, references.lion(starting_points(dtype), gradients, STEPS, **settings))


@dtypes
@both
@pytest.mark.parametrize("ramp", [None, 60, 1000])
def test_ademamix(dtype: torch.dtype, size: int, ramp: int | None) -> None:
    settings: dict[str, Any] = {"lr": 0.02, "betas": (0.8, 0.97, 0.99), "alpha": 4.0, "eps": 1e-3, "weight_decay": 0.3}
    found, _ = run(lambda parameters: AdEMAMix(parameters, **settings, ramp=ramp), dtype)
    assert_equal(found, references.ademamix(starting_points(dtype), gradients, STEPS, **settings, ramp=ramp))


@dtypes
@both
@pytest.mark.parametrize("d0", [1e-3, 0.05])
def test_prodigy(dtype: torch.dtype, size: int, d0: float) -> None:
    settings: dict[str, Any] = {
        "lr": 0.7,
        "betas": (0.9, 0.97),
        "eps": 1e-3,
        "weight_decay": 0.1,
        "d0": d0,
        "d_coef": 1.5,
    }
    found, optimizer = run(lambda parameters: Prodigy(parameters, **settings), dtype)
    expected, d = references.prodigy(starting_points(dtype), gradients, STEPS, **settings)
    assert d > 2 * d0
    assert optimizer.param_groups[0]["d"] == pytest.approx(d, rel=1e-4 if dtype == torch.float32 else 1e-12)
    assert_equal(found, expected, tolerance=10)


@dtypes
@both
@pytest.mark.parametrize("warmup", [0, 30])
@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_schedule_free(dtype: torch.dtype, size: int, warmup: int, decay: float, kind: str) -> None:
    lr, r = 0.05, 0.5

    def make(parameters: list[nn.Parameter]) -> Optimizer:
        shared = {"lr": lr, "weight_decay": decay, "warmup_steps": warmup, "r": r}
        if kind == "sgd":
            return ScheduleFreeSGD(parameters, momentum=0.8, **shared)  # type: ignore[arg-type]
        return ScheduleFreeAdamW(parameters, betas=(0.8, 0.97), eps=1e-3, **shared)  # type: ignore[arg-type]

    found, optimizer = run(make, dtype)
    y, x = references.schedule_free(
        starting_points(dtype),
        gradients,
        STEPS,
        lr=lambda t: lr * min(1.0, t / max(1, warmup)),
        beta=0.8,
        beta2=None if kind == "sgd" else 0.97,
        eps=1e-3,
        weight_decay=decay,
        r=r,
    )
    assert_equal(found, y)
    averaged = list(optimizer.evaluation_weights())  # type: ignore[attr-defined]
    assert [parameter is other for (parameter, _), other in zip(averaged, found, strict=True)] == [True] * len(SHAPES)
    assert_equal([each for _, each in averaged], x)
    assert max(float((a - b).abs().max()) for a, b in zip(x, y, strict=True)) > 1e-3


@dtypes
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("matched", [True, False])
def test_muon(dtype: torch.dtype, nesterov: bool, matched: bool) -> None:
    matrices = [0, 2, 1, 0, 3]
    shared: dict[str, Any] = {"lr": 0.02, "betas": (0.8, 0.97), "eps": 1e-3, "weight_decay": 0.3, "momentum": 0.9}
    adjust = "match_rms_adamw" if matched else "original"
    found, _ = run(
        lambda parameters: Muon(parameters, **shared, matrices=matrices, nesterov=nesterov, adjust_lr_fn=adjust), dtype
    )
    expected = references.muon(
        starting_points(dtype), gradients, STEPS, **shared, matrices=matrices, nesterov=nesterov, matched=matched
    )
    assert_equal(found, expected, tolerance=100)  # small singular values grow 3.44-fold in each of five iterations


@dtypes
@pytest.mark.parametrize("frequency", [1, 7])
def test_soap(dtype: torch.dtype, frequency: int) -> None:
    settings: dict[str, Any] = {
        "lr": 0.02,
        "betas": (0.9, 0.95),
        "eps": 1e-3,
        "weight_decay": 0.3,
        "frequency": frequency,
    }
    found, _ = run(lambda parameters: SOAP(parameters, **settings), dtype)
    assert_equal(found, references.soap(starting_points(dtype), gradients, STEPS, **settings), tolerance=100)


def test_a_schedule_of_lr_is_a_warm_up_too() -> None:
    """Steps with lr scaled by a scheduler are those of ``warmup_steps``; a first step at zero changes nothing."""
    by_argument, _ = run(lambda parameters: ScheduleFreeAdamW(parameters, lr=0.05, warmup_steps=20), torch.float64)
    by_schedule = [nn.Parameter(each) for each in starting_points(torch.float64)]
    optimizer = ScheduleFreeAdamW(by_schedule, lr=0.05)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 20))
    for t in range(1, STEPS + 1):
        for parameter, gradient in zip(by_schedule, gradients(t, [p.detach() for p in by_schedule]), strict=True):
            parameter.grad = gradient
        optimizer.step()
        scheduler.step()
    for left, right in zip(by_argument, by_schedule, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)

    weight = nn.Parameter(torch.ones(3))
    optimizer = ScheduleFreeAdamW([weight], lr=0.0)
    weight.grad = torch.ones(3)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.ones(3))
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.step()
    ((_, x),) = optimizer.evaluation_weights()
    torch.testing.assert_close(x, torch.full((3,), 0.9))  # all of the average is the first step that moved


def test_a_larger_lr_weighs_more_and_a_smaller_one_not_less() -> None:
    weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = ScheduleFreeSGD([weight], lr=1.0)
    z, total, x = 0.0, 0.0, 0.0
    for lr, largest in ((1.0, 1.0), (3.0, 3.0), (0.5, 3.0)):
        optimizer.param_groups[0]["lr"] = lr
        weight.grad = torch.ones(1, dtype=torch.float64)
        optimizer.step()
        z -= lr
        total += largest**2
        x += largest**2 / total * (z - x)
    ((_, found),) = optimizer.evaluation_weights()
    assert found.item() == pytest.approx(x, rel=1e-12)
