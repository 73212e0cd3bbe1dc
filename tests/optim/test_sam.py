"""The sharpness-aware gradient against its formula, and what the second run leaves behind."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_perf.optim.sam import sam_closure


@pytest.mark.parametrize("adaptive", [False, True])
def test_gradient_at_the_worst_neighbour(adaptive: bool) -> None:
    torch.manual_seed(0)
    a, b = nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(4))
    start = [a.detach().clone(), b.detach().clone()]

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return x.pow(4).sum() + (y.sin() * x.sum()).sum()

    def closure() -> Tensor:
        value = loss(a, b)
        value.backward()
        return value

    value = sam_closure(closure, [a, b], rho=0.3, adaptive=adaptive)()
    points = [each.clone().requires_grad_() for each in start]
    first = torch.autograd.grad(loss(*points), points)
    scales = [each.abs() if adaptive else torch.ones_like(each) for each in start]
    norm = torch.cat([(s * g).flatten() for s, g in zip(scales, first, strict=True)]).norm()
    moved = [
        (p + 0.3 * s * s * g / norm).detach().requires_grad_() for p, s, g in zip(start, scales, first, strict=True)
    ]
    expected = torch.autograd.grad(loss(*moved), moved)
    assert value.item() == loss(*start).item()
    for parameter, old, gradient, plain in zip((a, b), start, expected, first, strict=True):
        assert torch.equal(parameter, old)
        torch.testing.assert_close(parameter.grad, gradient)
        assert not torch.allclose(gradient, plain)


def test_statistics_and_gradients_of_one_run_only() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    calls = []

    def closure() -> None:
        calls.append(1)
        net(x).square().sum().backward()

    net[0].weight.grad = torch.full((4, 3), 1e6)  # of an earlier batch: not added to
    sam_closure(closure, net.parameters(), module=net)()
    assert len(calls) == 2
    assert net[1].num_batches_tracked == 1
    assert net[0].weight.grad.abs().max() < 1e3
    mean = net[1].running_mean.clone()
    net[1].reset_running_stats()
    net(x)
    torch.testing.assert_close(net[1].running_mean, mean)


def test_the_parameters_come_back_when_the_second_run_fails() -> None:
    weight = nn.Parameter(torch.ones(2))
    runs = []

    def closure() -> None:
        runs.append(weight.detach().clone())
        if len(runs) == 2:
            raise RuntimeError("planted")
        weight.square().sum().backward()

    with pytest.raises(RuntimeError, match="planted"):
        sam_closure(closure, [weight], rho=0.5)()
    assert not torch.equal(runs[1], torch.ones(2))
    assert torch.equal(weight, torch.ones(2))


def test_a_gradient_of_zero_moves_nothing() -> None:
    weight = nn.Parameter(torch.zeros(2))

    def closure() -> None:
        weight.square().sum().backward()

    sam_closure(closure, [weight])()
    assert torch.equal(weight.grad, torch.zeros(2))
    sam_closure(lambda: None, [weight])()


def test_wrong_radius() -> None:
    with pytest.raises(ValueError, match=r"rho=0 must be above 0, such as 0\.05"):
        sam_closure(lambda: None, [], rho=0)
