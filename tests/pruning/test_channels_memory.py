"""What finding and trying channels takes: few samples where they do, and no activations that outlive a step."""

from __future__ import annotations

import gc
from collections import OrderedDict, namedtuple
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lightning_perf as lp
from lightning_perf.host import few_samples
from lightning_perf.pruning.trace import Trace, leaves_of
from tests.contract.modules import images, make
from tests.pruning.test_channels import batch, loss_on
from tests.pruning.test_channels_ways import with_methods
from tests.pruning.test_trace import KINDS, as_sets

pytest.importorskip("torch_pruning", reason="needs torch-pruning (extra prune)")
Pair = namedtuple("Pair", "x y")


def test_few_samples() -> None:
    """Every tensor is cut to its first entries, names go along, and what is no sample stays."""
    x, y = torch.randn(5, 2), torch.arange(5)
    few = few_samples(Pair({"x": x, "names": list("abcde")}, [y, 0.5, None, torch.tensor(1)]), 2)
    assert torch.equal(few.x["x"], x[:2])
    assert few.x["names"] == ["a", "b"]
    assert torch.equal(few.y[0], y[:2])
    assert few.y[1:] == [0.5, None, torch.tensor(1)]
    detections = [torch.zeros(3, 4 + i, 4) for i in range(5)], [{"boxes": torch.zeros(i, 4)} for i in range(5)]
    few = few_samples(detections, 2)
    assert [one.shape for one in few[0]] == [(3, 4, 4), (3, 5, 4)]
    assert few[1] == detections[1][:2]


@pytest.mark.parametrize(
    "whole",
    [
        (torch.zeros(5, 3), torch.zeros(7, 5)),  # a graph: nodes and edges
        {"x": torch.zeros(5, 3), "offsets": torch.zeros(6)},
        (torch.zeros(5, 3), object()),
        OrderedDict(x=torch.zeros(5, 3)),
        torch.zeros(2, 3),
        torch.tensor(1.0),
        "text",
    ],
)
def test_a_batch_that_is_not_sure_to_part(whole: Any) -> None:
    assert few_samples(whole, 2) is None


@pytest.mark.parametrize("kind", KINDS)
def test_groups_of_few_samples_are_those_of_all(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    nets = kind().eval(), kind().eval()
    nets[1].load_state_dict(nets[0].state_dict())
    whole, few = (Trace(net, loss_on(x)) for net, x in zip(nets, (batch(), batch()[:2]), strict=True))
    names = [name for name, layer in nets[0].named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    groups = []
    for trace in (whole, few):
        order = {id(node): index for index, node in enumerate(trace._graph.module2node.values())}
        found = [as_sets(trace._group(trace._clone.get_submodule(name), range(0, 4))) for name in names]
        groups.append([{(order[one], how): indices for (one, how), indices in group.items()} for group in found])
    assert groups[0] == groups[1]


def test_a_trace_lets_the_activations_go() -> None:
    """An operation that keeps something for its gradient is gone with it; the groups are there."""

    class Noted(torch.autograd.Function):
        alive = 0

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.token = Token()
            return x * 2

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad * 2

    class Token:
        def __init__(self) -> None:
            Noted.alive += 1

        def __del__(self) -> None:
            Noted.alive -= 1

    net: Any = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
    trace = Trace(net, lambda net: Noted.apply(net[2](Noted.apply(net[0](torch.ones(3, 4))).relu()[:, 0:])).sum())
    gc.collect()
    assert Noted.alive == 0
    assert trace.cut({"0": [1]}).keep["2.weight"][1].tolist() == [0, *range(2, 32)]


def test_the_leaves_of_a_loss() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2), nn.Linear(3, 1))
    loss = net[1](net[0](torch.ones(1, 2))).sum()
    assert leaves_of(loss) == {id(one) for one in net[:2].parameters()}
    assert leaves_of(torch.ones(())) == set()


def counted(ns: ModuleType, quiet: dict[str, Any], step: Any = None) -> tuple[list[tuple[int, bool]], Any]:
    """The batch sizes that copies see in the cut, and whether they keep a graph; of a fit of batches of twelve."""
    seen: list[tuple[int, bool]] = []

    def forward(self: Any, x: Tensor) -> Tensor:
        if vars(self).get("_losses_by_hand") is not None:  # a copy
            seen.append((len(x), torch.is_grad_enabled()))
        return self.net(x)

    module = with_methods(ns, forward=forward, loss=type(make("plain", ns)).loss)
    if step is not None:
        module.__class__.training_step = step
    pruning = lp.ChannelPruning(0.6, round_to=2)
    trainer = ns.Trainer(**{**quiet, "max_epochs": 2}, callbacks=[pruning])
    trainer.fit(module, images(batch_size=12))
    return seen, module


def test_two_samples_are_enough(ns: ModuleType, quiet: dict[str, Any]) -> None:
    """All twelve only once with a graph, to see what they lead to; without one to measure, and for the last proof."""
    seen, module = counted(ns, quiet)
    assert seen.count((12, True)) == 1
    assert seen.count((12, False)) > 2
    assert {size for size, _ in seen} == {2, 12}
    assert module.net[0].out_channels < 8


def test_all_samples_where_few_lead_elsewhere(ns: ModuleType, quiet: dict[str, Any]) -> None:
    """Part of the loss is of the samples behind the second, or the batch has to be whole."""
    base = type(make("plain", ns)).training_step

    def by_size(self: Any, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return base(self, [x, y], batch_idx) if len(x) > 2 else self.net[:4](x).square().mean()

    def of_twelve(self: Any, batch: Any, batch_idx: int) -> Tensor:
        return base(self, [batch[0].view(12, 1, 8, 8), batch[1]], batch_idx)

    for step in (by_size, of_twelve):
        seen, module = counted(ns, quiet, step)
        assert {size for size, _ in seen} == {12}
        assert module.net[0].out_channels < 8
