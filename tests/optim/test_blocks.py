"""Cutting and gathering, the cautious mask, Prodigy's groups, and the optional library of further optimizers."""

from __future__ import annotations

import itertools
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_perf.optim import blocks
from lightning_perf.optim.ademamix import AdEMAMix
from lightning_perf.optim.blocks import fills_its_memory, in_blocks
from lightning_perf.optim.fused import make_fused
from lightning_perf.optim.lion import Lion
from lightning_perf.optim.prodigy import Prodigy
from lightning_perf.optim.registry import build, get_optimizer, list_optimizers
from lightning_perf.optim.schedule_free import ScheduleFreeAdamW


@pytest.mark.parametrize("size", [1, 4, 7, 1000])
@pytest.mark.parametrize("whole", [False, True])
def test_every_element_is_served_once(size: int, whole: bool) -> None:
    shapes = [(3,), (2, 4), (), (5, 2), (1,), (2, 3, 2, 2), (6,)]
    rows = [(torch.zeros(shape), torch.ones(shape)) for shape in shapes]
    rows[3] = (torch.zeros(2, 5).mT, torch.ones(5, 2))  # another order: served alone
    rows[4] = (torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    rows[5] = tuple(each.to(memory_format=torch.channels_last) for each in rows[5])  # type: ignore[assignment]
    served = 0
    for (left, right), alike in in_blocks(rows, whole=whole, size=size):
        assert len({each.dtype for each in left}) == 1
        count = sum(each.numel() for each in left)
        assert count <= size or len(left) == 1
        served += count
        assert alike == all(a.stride() == b.stride() for a, b in zip(left, right, strict=True))
        torch._foreach_add_(left, right)
    assert served == sum(left.numel() for left, _ in rows)
    assert all(torch.equal(left, right) for left, right in rows)


def test_tensors_without_gaps() -> None:
    image = torch.zeros(2, 3, 4, 5)
    full = [image, image.to(memory_format=torch.channels_last), image.permute(3, 1, 0, 2), torch.zeros(3, 1).mT]
    assert all(fills_its_memory(each) for each in full)
    holes = [image[:, :2], image[..., ::2], torch.zeros(1).expand(3), torch.zeros(2).as_strided((2, 2), (0, 1))]
    assert not any(fills_its_memory(each) for each in holes)


def test_blocks_do_not_change_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> list[Tensor]:
        torch.manual_seed(0)
        parameters = [nn.Parameter(torch.randn(shape)) for shape in ((50,), (9, 9), (3,))]
        optimizer = ScheduleFreeAdamW(parameters, weight_decay=0.1)
        for _ in range(5):
            for parameter in parameters:
                parameter.grad = torch.randn(parameter.shape)
            optimizer.step()
        return [parameter.detach() for parameter in parameters]

    expected = run()
    monkeypatch.setattr(blocks, "_CPU_BLOCK", 16)
    for found, whole in zip(run(), expected, strict=True):
        torch.testing.assert_close(found, whole, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("make", [Lion, AdEMAMix])
def test_cautious_components_do_not_climb(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a change of sign, masked components stand still and the others move further, over the whole tensor."""
    monkeypatch.setattr(blocks, "_CPU_BLOCK", 3)
    weight, plain = nn.Parameter(torch.zeros(8)), nn.Parameter(torch.zeros(8))
    cautious, bold = make([weight], lr=0.1, cautious=True), make([plain], lr=0.1)
    turned = torch.tensor([1.0, 1.0, -0.01, 1.0, 1.0, -0.01, 1.0, 1.0])
    for gradient in (torch.ones(8), turned):
        before, at = weight.detach().clone(), plain.detach().clone()
        for parameter, optimizer in ((weight, cautious), (plain, bold)):
            parameter.grad = gradient.clone()
            optimizer.step()
    moved, expected = weight.detach() - before, plain.detach() - at
    assert torch.equal(moved[turned < 0], torch.zeros(2))
    torch.testing.assert_close(moved[turned > 0], expected[turned > 0] * 8 / 6)
    assert (expected[turned < 0] < 0).all()


def test_groups_of_prodigy_are_a_change_of_variables() -> None:
    """Half the lr for one group is the same run with that group measured in halves, and d grows as there."""
    torch.manual_seed(0)
    a, b = (torch.randn(4, dtype=torch.float64) for _ in range(2))
    target = torch.full((4,), 3.0, dtype=torch.float64)
    x, y = nn.Parameter(a.clone()), nn.Parameter(b.clone())
    grouped = Prodigy([{"params": [x]}, {"params": [y], "lr": 0.5}], eps=0.0, d0=1e-2)
    u, v = nn.Parameter(a.clone()), nn.Parameter(2 * b)
    plain = Prodigy([u, v], eps=0.0, d0=1e-2)
    for _ in range(40):
        x.grad, y.grad = x.detach() - target, y.detach() - target
        u.grad, v.grad = u.detach() - target, 0.5 * (0.5 * v.detach() - target)
        grouped.step()
        plain.step()
    assert [g["d"] for g in grouped.param_groups] == pytest.approx([plain.param_groups[0]["d"]] * 2, rel=1e-9)
    torch.testing.assert_close(y.detach(), 0.5 * v.detach(), rtol=1e-9, atol=1e-9)
    assert plain.param_groups[0]["d"] > 0.1


def test_prodigy_and_a_group_added_later() -> None:
    first, second = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))
    optimizer = Prodigy([first], d0=1e-3)
    for _ in range(20):
        first.grad = first.detach() - 5
        optimizer.step()
    d = optimizer.param_groups[0]["d"]
    assert d > 1e-2
    optimizer.add_param_group({"params": [second]})
    second.grad = torch.ones(3)
    optimizer.step()
    assert optimizer.param_groups[1]["d"] >= d
    assert second.abs().max() > 1e-3


def test_prodigy_waits_for_a_learning_rate_and_a_gradient() -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer = Prodigy([weight], lr=0.0)
    optimizer.step()
    weight.grad = torch.ones(2)
    optimizer.step()
    assert not optimizer.state
    with pytest.raises(ValueError, match=r"growth_rate=1.0 must be above 1, such as 1.02"):
        Prodigy([weight], growth_rate=1.0)


def test_growth_of_prodigy_is_limited() -> None:
    weight = nn.Parameter(torch.zeros(2))
    optimizer = Prodigy([weight], d0=1e-3, growth_rate=1.5)
    d = []
    for _ in range(8):
        weight.grad = weight.detach() - 5
        optimizer.step()
        d.append(optimizer.param_groups[0]["d"])
    assert max(b / a for a, b in itertools.pairwise(d)) == pytest.approx(1.5)


def test_own_steps_are_not_fused_again() -> None:
    for row in list_optimizers():
        if row.path.startswith("lightning_perf."):
            optimizer = build(row.name, [nn.Parameter(torch.zeros(2, 2))])
            handle = make_fused(optimizer)
            assert not handle.changed
            reason = "it has a step of its own, which needs no fused kernel"
            assert handle.reason == f"{type(optimizer).__name__}: {reason}"


class Tiger(torch.optim.SGD):
    """Stands for an optimizer of the other library."""

    def __init__(self, params: Any, lr: float = 0.25, weight_decay: float = 0.0, **kwargs: Any) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A stand-in for pytorch_optimizer, installed or not."""
    fake = ModuleType("pytorch_optimizer")
    fake.get_supported_optimizers = lambda: ["tiger", "lion", "sophiah", "schedulefreeadamw"]  # type: ignore[attr-defined]
    fake.load_optimizer = lambda name: {"tiger": Tiger}[name]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", fake)
    return fake


def test_the_long_tail_by_name(library: ModuleType) -> None:
    row = get_optimizer("Tiger")
    assert (row.name, row.load(), row.defaults, row.state_bytes) == ("tiger", Tiger, {"lr": 0.25}, None)
    optimizer = build("tiger", [nn.Parameter(torch.zeros(2))], weight_decay=0.1)
    assert type(optimizer) is Tiger
    assert (optimizer.defaults["lr"], optimizer.defaults["weight_decay"]) == (0.25, 0.1)
    assert get_optimizer("lion").load() is Lion  # ours come first
    with pytest.raises(ValueError, match=r"Unknown option 'kwargs' of tiger; Tiger has \."):
        build("tiger", [nn.Parameter(torch.zeros(2))], options={"kwargs": 1})
    with pytest.raises(ValueError, match="'sophiah' of pytorch_optimizer needs backward"):
        get_optimizer("sophiah")
    with pytest.raises(ValueError, match=r"'schedulefreeadamw' .*use schedule_free_adamw"):
        get_optimizer("schedulefreeadamw")
    with pytest.raises(ValueError, match=r"Unknown optimizer 'lyon'; known are adadelta.*Did you mean 'lion'\?$"):
        get_optimizer("lyon")


def test_the_long_tail_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(ValueError, match=r"'tiger'; known are adadelta.*pip install 'lightning-perf\[optimizers\]'"):
        get_optimizer("tiger")


def test_the_real_library() -> None:
    pytest.importorskip("pytorch_optimizer")
    optimizer = build("adan", [nn.Parameter(torch.zeros(2))])
    assert type(optimizer).__module__.startswith("pytorch_optimizer")
