"""What goes together, against Torch-Pruning's own search; and one trace that serves any number of cuts."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_perf.pruning.channels import Channels
from lightning_perf.pruning.cut import Cut
from lightning_perf.pruning.trace import Trace
from tests.pruning.test_channels import Attention, Mobile, Recurrent, Residual, batch, loss_on

pytest.importorskip("torch_pruning", reason="needs torch-pruning (extra prune)")


class Unrolled(nn.Module):
    """One cell called at every step, as in recurrent nets by hand, with a gate and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.gate, self.head = nn.Linear(8, 12), nn.Linear(24, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = self.inner(x[:, 0, 0]).relu()
        for row in x[:, 0].unbind(1):
            new = self.inner(row).relu()
            state = state * torch.sigmoid(self.gate(torch.cat([state, new], 1))) + new
        return self.head(state)


KINDS = [Residual, Mobile, Attention, Recurrent, Unrolled]


def trace_of(kind: type[nn.Module]) -> Trace:
    torch.manual_seed(0)
    return Trace(kind().eval(), loss_on(batch()))


def as_sets(group: Any) -> dict[tuple[int, str], set[int]]:
    return {(id(item.dep.target), item.dep.handler.__qualname__): set(item.idxs) for item in group}


@pytest.mark.parametrize("kind", KINDS)
def test_groups_are_those_of_torch_pruning(kind: type[nn.Module]) -> None:
    """Every layer's, all of its channels and every third: the same indices of the same operations."""
    trace = trace_of(kind)
    roots = [layer for layer in trace._clone.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    for root in roots:
        take_out = trace._graph.get_pruner_of_module(root).prune_out_channels
        count = trace._graph.get_out_channels(root)
        for step in (1, 3):
            theirs = trace._graph.get_pruning_group(root, take_out, list(range(0, count, step)))
            ours = trace._group(root, range(0, count, step))
            assert as_sets(ours) == as_sets(theirs)
            assert (ours[0].idxs, ours[0].root_idxs) == (theirs[0].idxs, theirs[0].root_idxs)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_torch_pruning(kind: type[nn.Module]) -> None:
    import torch_pruning

    torch.manual_seed(0)
    clone = kind().eval()
    graph = torch_pruning.DependencyGraph()
    loss = loss_on(batch())
    graph.build_dependency(clone, None, forward_fn=lambda net, _: loss(net), verbose=False)
    importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)
    names = {layer: name for name, layer in clone.named_modules()}
    theirs = {}
    for group in graph.get_all_groups(root_module_types=(nn.modules.conv._ConvNd, nn.Linear)):
        theirs[names[group[0].dep.target.module]] = importance(group)
    ours = {name: scores for name, scores, _ in trace_of(kind).groups()}
    assert list(ours) == list(theirs)
    for name, scores in ours.items():
        torch.testing.assert_close(scores, theirs[name].detach())


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_leaves_the_trace_as_it_was(kind: type[nn.Module]) -> None:
    """The same cut again, after others and after one that is impossible, is that of a fresh trace."""

    def as_lists(cut: Cut) -> Any:
        keep = {name: {dim: one.tolist() for dim, one in dims.items()} for name, dims in cut.keep.items()}
        return keep, {name: dict(sizes) for name, sizes in cut.sizes.items()}

    torch.manual_seed(0)
    net = kind().eval()
    channels = Channels(net, loss_on(batch()), round_to=4).find()
    half, most = channels.choose(0.5), channels.choose(1.0)
    first = as_lists(channels.cut(half))
    channels.cut(most)
    name, scores = next(iter(channels.scores.items()))
    with pytest.raises(ValueError, match="nothing would be left"):
        channels.cut({name: range(len(scores))})
    assert as_lists(channels.cut(half)) == first
    assert as_lists(Trace(copy.deepcopy(net), loss_on(batch())).cut(half)) == first
    assert first[0]


class Gated(nn.Module):
    """A gate from the mean over channels, which is read as a norm of sixteen; and a block of which nothing is misread."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.norm, self.narrow = nn.Linear(8, 16), nn.LayerNorm(1), nn.Linear(16, 8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.wide(x[:, 0])
        x = self.narrow(wide.relu() * self.norm(wide.mean(-1, keepdim=True)))
        return x + self.down(self.up(x).relu())


def test_a_search_that_leads_nowhere_ends() -> None:
    """Its group stays whole with the reason, and what was read rightly is cut."""
    torch.manual_seed(0)
    channels = Channels(Gated().eval(), loss_on(batch()), round_to=2).find()
    assert channels.scores.keys() == {"up"}
    assert "a view or a concatenation was misread" in channels.left_out["wide"]
