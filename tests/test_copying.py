"""Modules on which a forward pass has left tensors with a graph are copied, by every callback that copies."""

from __future__ import annotations

import copy
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lightning_perf as lp
from lightning_perf._copying import deep_copy
from tests.contract.modules import images, make


class Kept:
    """Something of the user's own that holds a tensor."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def in_use() -> nn.Module:
    """Its attributes hold tensors with a graph: alone, in containers, in an object, and twice the same."""
    net: Any = nn.Linear(3, 2)
    net.last = net(torch.ones(4, 3))
    net.maps = {"all": [net.last, (net.last * 2).t()]}
    net.kept = Kept(net.weight.view(-1))
    net.mean = torch.ones(2)
    return net


def test_tensors_with_a_graph_become_detached_clones() -> None:
    net: Any = in_use()
    with pytest.raises(RuntimeError, match="graph leaves"):
        copy.deepcopy(net)
    clone: Any = deep_copy(net)
    for theirs, ours in [
        (clone.last, net.last),
        (clone.maps["all"][1], net.maps["all"][1]),
        (clone.kept.tensor, net.kept.tensor),
        (clone.mean, net.mean),
    ]:
        assert torch.equal(theirs, ours)
        assert theirs.grad_fn is None
        assert theirs.stride() == ours.stride()
        assert theirs.data_ptr() != ours.data_ptr()
    assert clone.maps["all"][0] is clone.last
    assert net.last.grad_fn is not None
    assert clone.weight.requires_grad
    assert isinstance(clone.weight, nn.Parameter)


def test_what_is_copied_with_one_memo_holds_together() -> None:
    net = in_use()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    memo: dict[int, Any] = {}
    clone = deep_copy(net, memo)
    assert deep_copy(optimizer, memo).param_groups[0]["params"][0] is clone.weight


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_a_weight_that_is_computed_in_every_call() -> None:
    """``nn.utils.weight_norm`` keeps it beside its parameters."""
    layer = nn.utils.weight_norm(nn.Linear(3, 2))
    layer(torch.ones(1, 3))
    clone = deep_copy(layer)
    with torch.no_grad():
        clone.weight_g.mul_(2)
    torch.testing.assert_close(clone(torch.ones(1, 3)) - clone.bias, 2 * (layer(torch.ones(1, 3)) - layer.bias))


CALLBACKS = {
    "pruning": lambda: lp.ChannelPruning(0.6, round_to=2),
    "range test": lambda: lp.OptimizerFactory("adamw", lr="auto"),
}


@pytest.mark.parametrize("name", CALLBACKS)
def test_callbacks_on_a_module_in_use(name: str, ns: ModuleType, quiet: dict[str, Any]) -> None:
    """It keeps its last activations, has run once before the fit, and is not validated, which would leave others there."""
    if name == "pruning":
        pytest.importorskip("torch_pruning", reason="needs torch-pruning (extra prune)")
    module = make("plain", ns)
    base = type(module)

    def forward(self: Any, x: Tensor) -> Tensor:
        self.maps = [self.net[:4](x)]
        self.last = self.net[4:](self.maps[0])
        return self.last

    module.__class__ = type("WithMaps", (base,), {"forward": forward})
    module(next(iter(images()))[0])
    trainer = ns.Trainer(**{**quiet, "max_epochs": 2}, callbacks=[CALLBACKS[name]()])
    trainer.fit(module, images())
    assert trainer.global_step == 12
