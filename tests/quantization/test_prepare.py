"""Which layers are prepared, why not the others, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from lightning_perf.quantization import SCHEMES, entries, preparation, prepare, section, unprepare
from lightning_perf.quantization.layers import records
from lightning_perf.quantization.listing import lines
from lightning_perf.quantization.watch import Watch


def small() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(18, 64), nn.Linear(64, 3))


def test_patterns_cover_what_is_below() -> None:
    net = nn.ModuleDict({"body": small(), "head": nn.Linear(3, 3)})
    shared = prepare(net, ignore=["body.2"], overrides={"head": "int8-weight-only", "body.[3]": "float"})
    assert {name: layer.scheme.name for name, _, layer in records(net)} == {
        "body.0": "int8",
        "head": "int8-weight-only",
    }
    assert shared.left == {"body.2": "it is ignored", "body.3": "overrides keep it in float"}
    unprepare(net)
    assert sorted(prepare(net, ignore=["body"]).left) == ["body.0", "body.2", "body.3"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ignore": ["hedd"]}, r"ignore: 'hedd' matches no layer .* the layers are 0, 2, 3"),
        ({"ignore": ["1"]}, r"ignore: '1' matches no layer"),
        ({"overrides": {"9": "float"}}, r"overrides: '9' matches no layer"),
        (
            {"ignore": ["*"], "overrides": {"3": "int8-weight-only"}},
            r"layer '3' is named by ignore \('\*'\) and by overrides \('3': 'int8-weight-only'\); .* Take it out of one",
        ),
        (
            {"overrides": {"*": "int8-weight-only", "3": "float"}},
            r"overrides: '3' gives no layer its scheme, .* '\*' comes first; put the narrower one first",
        ),
        ({"overrides": {"3": "int7"}}, r"scheme='int7' is not known"),
        ({"scheme": "int9"}, r"scheme='int9' is not known; choose one of"),
        ({"ignore": "head"}, r"use ignore=\['head'\]"),
        ({"ignore": ["*"]}, r"no layer that scheme='int8' can quantize .* 0 stays in float, because it is ignored"),
    ],
)
def test_mistakes_are_named(arguments: dict[str, object], message: str) -> None:
    net = small()
    with pytest.raises(ValueError, match=message):
        prepare(net, **arguments)  # type: ignore[arg-type]
    assert preparation(net) is None


def test_nothing_to_quantize() -> None:
    with pytest.raises(ValueError, match="Sequential has no layer that scheme='int8' can quantize"):
        prepare(nn.Sequential(nn.ReLU(), nn.BatchNorm1d(3)))


def test_preparing_again() -> None:
    net = small()
    shared = prepare(net)
    assert prepare(net) is shared
    with pytest.raises(ValueError, match=r"prepared already, for scheme int8 .* use lightning_perf.unprepare"):
        prepare(net, "int4")
    prepare(unprepare(net), "int4")


def odd(change: Callable[[nn.Linear], object]) -> nn.Module:
    layer = nn.Linear(20, 4)
    change(layer)
    return layer


@pytest.mark.parametrize(
    ("layer", "scheme", "reason"),
    [
        (nn.Linear(20, 4), "int4", "its 20 inputs do not divide into groups of 32"),
        (nn.Conv2d(1, 1, 1), "int4", "scheme int4 covers linear only"),
        (nn.Embedding(4, 4, sparse=True), "int8", "its gradients are sparse"),
        (nn.Embedding(4, 4, max_norm=1.0), "int8", "max_norm writes to its weight"),
        (nn.ConvTranspose2d(2, 2, 1, groups=2), "int8", "grouped transposed convolution"),
        (odd(lambda layer: setattr(layer, "forward", lambda x: x)), "int8", "its forward was replaced on the instance"),
        (odd(lambda layer: layer.compile(backend="eager")), "int8", "it is compiled already"),
        (nn.LazyLinear(4), "int8", "it is lazy and has no weights yet"),
        (nn.Bilinear(2, 2, 2), "int8", "Bilinear computes with weight itself"),
    ],
)
def test_reasons(layer: nn.Module, scheme: str, reason: str) -> None:
    net = nn.Sequential(layer, nn.Linear(32, 4))
    assert reason in prepare(net, scheme).left["0"]
    assert type(net[0]) is type(layer)
    assert "_lightning_perf_quantized" not in vars(net[0])


def test_every_scheme_trains() -> None:
    for name in SCHEMES:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))
        shared = prepare(net, name)
        x = torch.randn(64, 32)
        y = x[:, :1] * 2 + x[:, 1:2]
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        losses = []
        for _ in range(60):
            shared.observing = True
            loss = (net(x) - y).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            shared.ranges.take_in()
            losses.append(loss.item())
        assert losses[-1] < 0.1 * losses[0], name


def test_the_account_counts_the_work() -> None:
    """MACs of every kind by hand, a matmul outside of layers among them."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, groups=1)
            self.up = nn.ConvTranspose2d(4, 2, 2, stride=2)
            self.rnn = nn.GRU(2, 5)
            self.out, self.skipped = nn.Linear(5, 7), nn.Linear(7, 7)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.up(self.conv(x))
            x = self.rnn(x.flatten(2).permute(2, 0, 1))[0]
            x = self.skipped(self.out(x))
            return x @ x.transpose(1, 2)

    net = Net()
    shared = prepare(net, ignore=["skipped"])
    shared.observing = True
    with Watch(net):
        net(torch.randn(6, 3, 4, 4)).sum().backward()
    shared.ranges.take_in()
    shared.observing = False
    rows = 16 * 6
    assert shared.macs == {
        "conv": 6 * 4 * 2 * 2 * 3 * 9,
        "up": 6 * 4 * 2 * 2 * 2 * 2 * 2,
        "rnn": rows * 15 * (2 + 5),
        "out": rows * 5 * 7,
        "skipped": rows * 7 * 7,
        "(bmm)": 16 * 6 * 6 * 7,
    }
    share = sum(shared.macs[name] for name in ("conv", "up", "rnn", "out")) / sum(shared.macs.values())
    told = lines(entries(net))
    assert told[0] == f"4 layers quantized, {share:.1%} of the multiplications of the first step."
    assert told[1:] == [
        "left in float, because it is ignored: skipped.",
        "left in float, because it is computed outside of layers: (bmm).",
    ]
    assert {row[0] for row in section(net).rows} == set(shared.macs)


def test_inference_mode_counts_alike() -> None:
    """There torch shows operators such as ``linear`` and ``conv2d`` whole."""
    counts = []
    for mode in (torch.no_grad, torch.inference_mode):
        net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(18, 3)).eval()
        shared = prepare(net)
        with mode(), Watch(net):
            net(torch.randn(4, 1, 5, 5))
        counts.append((shared.macs, {name: layer.norm is not None for name, _, layer in records(net)}))
    assert counts[0] == counts[1] == ({"0": 4 * 2 * 9 * 9, "3": 4 * 18 * 3}, {"0": True, "3": False})


def test_products_between_activations_do_not_count_as_quantized() -> None:
    net = nn.MultiheadAttention(8, 2, batch_first=True)
    shared = prepare(nn.Sequential(net))
    x = torch.randn(3, 5, 8)
    with Watch(nn.Sequential(net)):
        net(x, x, x)
    projections, scores = 3 * 5 * 8 * (3 * 8 + 8), 2 * 3 * 2 * 5 * 5 * 4
    assert shared.macs["0"] == projections
    assert sum(macs for name, macs in shared.macs.items() if name.startswith("(")) == scores


def test_layers_that_nothing_reached_and_layers_with_broken_inputs() -> None:
    net = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)])
    shared = prepare(net)
    shared.observing = True
    with Watch(net):
        net[0](torch.randn(2, 4))
        net[1](torch.full((2, 4), float("nan")))
    shared.ranges.take_in()
    shared.observing = False
    notes = [entry.note for entry in entries(net)]
    assert notes == ["int8", "its inputs were not finite", "no batch has reached it"]


def test_a_module_registered_twice_counts_once() -> None:
    layer = nn.Linear(4, 4)
    net = nn.ModuleDict({"a": layer, "b": layer})
    prepare(net)
    assert [name for name, _, _ in records(net)] == ["a"]
    assert copy.deepcopy(net)["a"] is not layer
