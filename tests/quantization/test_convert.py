"""Batch norms folded, integers stored: against the prepared module to the last bit, and against arithmetic by hand."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_perf.quantization import SCHEMES, folded_float, prepare, ranges, to_qdq, unprepare
from lightning_perf.quantization.layers import Layer, records
from lightning_perf.quantization.watch import Watch
from tests.quantization.test_layers import per_channel, quantize_dequantize


def calibrated(net: nn.Module, *x: Tensor, scheme: str = "int8") -> nn.Module:
    """Prepared, with a training step and an evaluation step behind it, in evaluation mode."""
    shared = prepare(net.train(), scheme)
    shared.observing = shared.observing_outputs = True
    with Watch(net):
        net(*x)
    net(*x)
    shared.ranges.take_in()
    shared.observing = shared.observing_outputs = False
    net.eval()
    with torch.no_grad(), Watch(net):
        net(*x)
    return net


def layer_of(net: nn.Module, name: str) -> Layer:
    return next(layer for key, _, layer in records(net) if key == name)


class Residual(nn.Module):
    """conv-bn-relu, conv-bn + shortcut; what every residual net is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
        self.conv2, self.bn2 = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        out += x
        return F.relu(out)


def with_odd_factors(norm: nn.Module) -> None:
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([-1.5, 0.0, 0.7]))  # type: ignore[union-attr]
        norm.bias.copy_(torch.tensor([0.1, -0.2, 0.3]))  # type: ignore[union-attr]


def test_residual_block_equals_the_block_by_hand() -> None:
    """A negative factor and one of zero among those of the batch norms."""
    torch.manual_seed(0)
    net = Residual()
    with_odd_factors(net.bn1)
    with_odd_factors(net.bn2)
    x = torch.randn(4, 3, 6, 6)
    calibrated(net, x)
    assert [layer_of(net, name).norm for name in ("conv1", "conv2")] == [net.bn1, net.bn2]
    assert [layer_of(net, name).feeds_addition for name in ("conv1", "conv2")] == [False, True]
    found = ranges(net)
    with torch.no_grad():
        out = F.conv2d(quantize_dequantize(x, *found["conv1"].input), per_channel(net.conv1.weight), padding=1)
        out = F.batch_norm(out, net.bn1.running_mean, net.bn1.running_var, net.bn1.weight, net.bn1.bias).relu()
        out = quantize_dequantize(out, *found["conv2"].input)
        out = F.conv2d(out, per_channel(net.conv2.weight), net.conv2.bias, padding=1)
        out = F.batch_norm(out, net.bn2.running_mean, net.bn2.running_var, net.bn2.weight, net.bn2.bias)
        expected = (out + x).relu()
        torch.testing.assert_close(net(x), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(to_qdq(net)(x), net(x), rtol=1e-5, atol=1e-5)
        gradless = net(x)
    torch.testing.assert_close(net(x), gradless, rtol=1e-5, atol=1e-5)
    with torch.no_grad():  # both observed steps were in float, with the statistics of the batch
        norms = [{"weight": norm.weight, "bias": norm.bias, "training": True} for norm in (net.bn1, net.bn2)]
        out = F.batch_norm(F.conv2d(x, net.conv1.weight, padding=1), None, None, **norms[0]).relu()
        out = F.batch_norm(F.conv2d(out, net.conv2.weight, net.conv2.bias, padding=1), None, None, **norms[1])
    assert found["conv2"].output == pytest.approx((out.min().item(), out.max().item()))
    scale = net.conv1.weight.detach().flatten(1).abs().amax(1) / 127
    factor = net.bn1.weight.detach() * (net.bn1.running_var + net.bn1.eps).rsqrt()
    torch.testing.assert_close(found["conv1"].weight_scale, scale * factor.abs(), rtol=1e-5, atol=1e-30)


NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, ...]]]] = {
    "residual": (Residual, lambda: (torch.randn(2, 3, 6, 6),)),
    "conv1d": (
        lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Conv1d(4, 2, 3)),
        lambda: (torch.randn(3, 2, 9),),
    ),
    "conv3d": (
        lambda: nn.Sequential(nn.Conv3d(2, 4, 3, groups=2), nn.BatchNorm3d(4), nn.ConvTranspose3d(4, 2, 2)),
        lambda: (torch.randn(2, 2, 5, 5, 5),),
    ),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose2d(2, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU()),
        lambda: (torch.randn(2, 2, 4, 4),),
    ),
    "linear": (
        lambda: nn.Sequential(nn.Linear(32, 8), nn.BatchNorm1d(8, affine=False), nn.ReLU(), nn.Linear(8, 2)),
        lambda: (torch.randn(9, 32),),
    ),
    "embedding": (
        lambda: nn.Sequential(nn.Embedding(9, 32), nn.Linear(32, 4)),
        lambda: (torch.randint(0, 9, (2, 5)),),
    ),
    "encoder": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2),
        lambda: (torch.randn(2, 5, 32),),
    ),
    "attention": (
        lambda: nn.MultiheadAttention(32, 4, kdim=8, vdim=12),
        lambda: (torch.randn(5, 2, 32), torch.randn(6, 2, 8), torch.randn(6, 2, 12)),
    ),
    "lstm": (lambda: nn.LSTM(8, 16, 2, bidirectional=True, proj_size=4), lambda: (torch.randn(5, 2, 8),)),
    "cell": (lambda: nn.GRUCell(8, 16), lambda: (torch.randn(2, 8),)),
}


def first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


@pytest.mark.parametrize("name", NETS)
def test_converted_equals_prepared(name: str) -> None:
    """To the last bit, or where a batch norm is folded to the rounding of that."""
    torch.manual_seed(0)
    make, inputs = NETS[name]
    net, x = make(), inputs()
    calibrated(net, *x)
    with torch.no_grad():
        expected = first(net(*x))
        twin = to_qdq(net)
        found = first(twin(*x))
        if any(layer.norm is not None for _, _, layer in records(net)):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(found, expected)
        assert torch.equal(first(pickle.loads(pickle.dumps(copy.deepcopy(twin)))(*x)), found)
        in_float = first(unprepare(copy.deepcopy(net))(*x))
    assert 1e-4 < (expected - in_float).norm() / in_float.norm() < 0.2
    weights = [value for key, value in twin.state_dict().items() if "weight" in key and value.dim() > 1]
    stored = [value.dtype for value in weights if value.dtype != torch.float32]
    assert set(stored) == {torch.int8}
    assert [value.shape for value in weights if value.dtype == torch.float32] == []
    assert not any(isinstance(child, nn.modules.batchnorm._BatchNorm) for child in twin.modules())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_converts(scheme: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 2) if scheme != "int4" else nn.Identity())
    x = torch.randn(9, 32)
    calibrated(net, x, scheme=scheme)
    with torch.no_grad():
        assert torch.equal(to_qdq(net)(x), net(x))
    assert ranges(net)["0"].weight_scale.shape == ((8, 1) if scheme == "int4" else (8,))
    assert (ranges(net)["0"].input is None) == (scheme != "int8")


def test_folded_float_is_a_plain_float_net_with_the_same_integers() -> None:
    torch.manual_seed(0)
    net = Residual()
    x = torch.randn(4, 3, 6, 6)
    calibrated(net, x)
    plain = folded_float(net)
    assert [type(child) for child in plain.children()] == [nn.Conv2d, nn.Identity, nn.Conv2d, nn.Identity]
    scale = ranges(net)["conv1"].weight_scale.view(-1, 1, 1, 1)
    integers = plain.conv1.weight.detach() / scale
    torch.testing.assert_close(integers, integers.round())
    assert integers.abs().amax((1, 2, 3)).tolist() == pytest.approx([127] * 3)
    with torch.no_grad():
        weights = unprepare(copy.deepcopy(net))
        for conv in (weights.conv1, weights.conv2):
            conv.weight.copy_(per_channel(conv.weight))
        torch.testing.assert_close(plain(x), weights(x), rtol=1e-4, atol=1e-5)


def test_copies_share_nothing_and_the_module_stays() -> None:
    net = Residual()
    x = torch.randn(4, 3, 6, 6)
    calibrated(net, x)
    before, expected = copy.deepcopy(net.state_dict()), net(x)
    for twin in (to_qdq(net), folded_float(net)):
        for tensor in (*twin.parameters(), *twin.buffers()):
            tensor.data.zero_()
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert torch.equal(net(x), expected)


def test_tied_weights_stay_tied_in_float() -> None:
    net = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9, bias=False))
    net[1].weight = net[0].weight
    calibrated(net, torch.randint(0, 9, (2, 5)))
    twin = folded_float(net)
    assert twin[1].weight is twin[0].weight
    torch.testing.assert_close(twin[0].weight, per_channel(net[0].weight))


class Branch(nn.Module):
    """A convolution and its batch norm, joined in a way of choice."""

    def __init__(self, join: Callable[[Any, Tensor], Tensor], **norm: Any) -> None:
        super().__init__()
        self.conv, self.bn, self.join = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, **norm), join

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self, x)


def hooked(net: Branch) -> Branch:
    net.conv.register_forward_hook(lambda module, args, output: output + 1)
    return net


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (Branch(lambda net, x: (lambda y: net.bn(y) + y)(net.conv(x))), "its output goes into add too"),
        (
            Branch(lambda net, x: net.bn(net.conv(x)) + net.conv(x * 2)),
            "it was called 2 times and its batch norm 1 times",
        ),
        (Branch(lambda net, x: net.bn(net.conv(x)), track_running_stats=False), "keeps no running statistics"),
        (hooked(Branch(lambda net, x: net.bn(net.conv(x)))), "a hook stands between"),
        (Branch(lambda net, x: net.bn(net.conv(x).mul_(2))), "its output goes into mul_ too"),
        (Branch(lambda net, x: net.bn(net.conv(x).relu())), None),
    ],
    ids=["second use", "called twice", "no statistics", "hook", "in place", "relu between"],
)
def test_what_cannot_be_folded_is_not(net: Branch, reason: str | None) -> None:
    x = torch.randn(4, 1, 6, 6)
    calibrated(net, x)
    layer = layer_of(net, "conv")
    assert layer.norm is None
    assert (layer.unfolded is None) if reason is None else (reason in str(layer.unfolded))
    with torch.no_grad():
        assert torch.equal(to_qdq(net)(x), net(x))


def test_a_shared_pair_is_folded() -> None:
    net = Branch(lambda net, x: net.bn(net.conv(x)) + net.bn(net.conv(x * 2)))
    x = torch.randn(4, 1, 6, 6)
    calibrated(net, x)
    assert layer_of(net, "conv").norm is net.bn
    with torch.no_grad():
        torch.testing.assert_close(to_qdq(net)(x), net(x), rtol=1e-5, atol=1e-5)


def test_a_pair_that_parts_later_is_not_folded() -> None:
    """In training and in evaluation; what a step without the batch norm returns is the layer's own output all along."""

    def join(net: Any, x: Tensor) -> Tensor:
        y = net.conv(x)
        return net.bn(y * 2) if x.mean() > 5 else y if x.mean() < -5 else net.bn(y)

    x = torch.randn(4, 1, 6, 6)
    net = Branch(join)
    calibrated(net, x)
    net.train()(x + 10)
    assert layer_of(net, "conv").unfolded == "its batch norm had another input in a later step"
    net = Branch(join)
    calibrated(net, x)
    with torch.no_grad():
        own = copy.deepcopy(net)
        layer_of(own, "conv").part("its output is what this one is to return")
        assert torch.equal(net(x - 10), own(x - 10))
        net(x + 10)
        assert layer_of(net, "conv").norm is None
        assert torch.equal(net(x), to_qdq(net)(x))


def test_outputs_are_rounded_where_asked() -> None:
    torch.manual_seed(0)
    net = Residual()
    x = torch.randn(4, 3, 6, 6)
    calibrated(net, x)
    counts = {}
    with torch.no_grad():
        for outputs in ("none", "additions", "all"):
            twin = to_qdq(net, outputs=outputs)  # type: ignore[arg-type]
            graph = torch.export.export(twin, (x,)).graph
            names = [getattr(node.target, "name", str)() for node in graph.nodes if node.op == "call_function"]
            counts[outputs] = names.count("quantized_decomposed::quantize_per_tensor")
        chosen = to_qdq(net, outputs=lambda name: name == "conv2")
        assert torch.equal(chosen(x), to_qdq(net, outputs="additions")(x))
        assert not torch.equal(chosen(x), net(x))
    assert counts == {"none": 2, "additions": 3, "all": 4}
    with pytest.raises(ValueError, match="outputs='some' is unknown; it is one of none, additions, all"):
        to_qdq(net, outputs="some")  # type: ignore[arg-type]


@pytest.mark.parametrize("strict", [True, False])
def test_torch_export_takes_it(strict: bool) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(Residual(), nn.Flatten(), nn.Linear(108, 4))
    x = torch.randn(2, 3, 6, 6)
    calibrated(net, x)
    twin = to_qdq(net)
    exported = torch.export.export(twin, (x,), strict=strict)
    with torch.no_grad():
        torch.testing.assert_close(exported.module()(x), net(x), rtol=0, atol=0)


@pytest.mark.parametrize("convert", [to_qdq, folded_float, ranges])
def test_refusals(convert: Callable[[nn.Module], Any]) -> None:
    with pytest.raises(ValueError, match="Linear is not prepared for quantization"):
        convert(nn.Linear(2, 2))
    net = nn.Sequential(nn.Linear(2, 2))
    prepare(net, "int8-weight-only")
    net[0].weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="weight of layer '0' is not finite"):
        convert(net)


def test_layers_without_ranges_stay_in_float() -> None:
    net = nn.ModuleDict({"used": nn.Linear(2, 2), "unused": nn.Linear(2, 2)})
    shared = prepare(net)
    shared.observing = True
    net["used"](torch.randn(3, 2))
    shared.ranges.take_in()
    assert list(ranges(net)) == ["used"]
    assert to_qdq(net)["unused"].weight.dtype == torch.float32
    assert type(folded_float(net)["unused"]) is nn.Linear
