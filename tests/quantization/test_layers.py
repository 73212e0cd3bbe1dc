"""Prepared layers against the same arithmetic written by hand; what must stay as it was."""

from __future__ import annotations

import copy
import pickle
from abc import ABC
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_perf.quantization import preparation, prepare, to_qdq, unprepare
from lightning_perf.quantization.layers import records
from lightning_perf.quantization.rounding import round_weight
from lightning_perf.quantization.schemes import get_scheme
from lightning_perf.quantization.watch import Watch


def observe(net: nn.Module, *inputs: Any, **keywords: Any) -> None:
    """Take the ranges of one call."""
    shared = preparation(net)
    assert shared is not None
    shared.observing = shared.observing_outputs = True
    net(*inputs, **keywords)
    shared.ranges.take_in()
    shared.observing = shared.observing_outputs = False


def quantize_dequantize(x: Tensor, low: float, high: float) -> Tensor:
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / 255
    zero = round(-low / scale)
    return ((x / scale).round() + zero).clamp(0, 255).sub(zero) * scale


def per_channel(weight: Tensor) -> Tensor:
    scale = weight.flatten(1).abs().amax(1).view(-1, *[1] * (weight.dim() - 1)) / 127
    return (weight / scale).round() * scale


def test_a_small_net_equals_the_net_by_hand() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3))
    x = torch.randn(5, 2, 7, 7)
    middle = net[:3](x)
    prepare(net)
    observe(net, x)
    hidden = F.conv2d(
        quantize_dequantize(x, x.min().item(), x.max().item()), per_channel(net[0].weight), net[0].bias, 2
    )
    hidden = quantize_dequantize(hidden.relu().flatten(1), middle.min().item(), middle.max().item())
    expected = F.linear(hidden, per_channel(net[3].weight), net[3].bias)
    torch.testing.assert_close(net(x), expected)


def test_a_layer_without_a_range_computes_in_float() -> None:
    net = nn.Linear(8, 4)
    x = torch.randn(3, 8)
    expected = net(x)
    prepare(net)
    assert torch.equal(net(x), expected)
    observe(net, x)
    assert not torch.equal(net(x), expected)
    shared = preparation(net)
    assert shared is not None
    shared.quantizing = False
    assert torch.equal(net(x), expected)


class Doubled(nn.Linear):
    """A subclass with a forward of its own, as users have them."""

    def forward(self, x: Tensor, *, plus: float = 0.0) -> Tensor:  # type: ignore[override]
        return super().forward(x) * 2 + plus


@pytest.mark.parametrize("convert", [False, True])
def test_the_forward_of_a_subclass_and_hooks_stay(convert: bool) -> None:
    """Where torchao's swap drops both (mean 99.96 becomes -0.02)."""
    torch.manual_seed(0)
    net = nn.Sequential(Doubled(8, 4))
    net[0].register_forward_hook(lambda module, args, output: output + 100)
    x = torch.randn(64, 8)
    expected = net(x)
    assert abs(expected.mean().item() - 100) < 2
    prepare(net)
    observe(net, x)
    out = (to_qdq(net) if convert else net)(x)
    assert 0 < (out - expected).abs().max() < 0.1
    assert isinstance(net[0], Doubled)
    torch.testing.assert_close(net[0](x, plus=1.0), net[0](x) + 1)


class Abstract(ABC, nn.Linear):
    """A subclass whose first base is not a module, as pytorch-forecasting has them."""


@pytest.mark.parametrize("convert", [False, True])
def test_a_subclass_with_another_base_first(convert: bool) -> None:
    net = nn.Sequential(Abstract(8, 4))
    x = torch.randn(6, 8)
    prepare(net)
    observe(net, x)
    out = (to_qdq(net) if convert else net)(x)
    torch.testing.assert_close(
        out, F.linear(quantize_dequantize(x, x.min().item(), x.max().item()), per_channel(net[0].weight), net[0].bias)
    )
    assert type(unprepare(net)[0]) is Abstract


def test_keyword_arguments_are_rounded_too() -> None:
    net = nn.Linear(8, 4)
    prepare(net)
    x = torch.randn(6, 8)
    observe(net, input=x)
    assert torch.equal(net(input=x), net(x))
    torch.testing.assert_close(
        net(x), F.linear(quantize_dequantize(x, x.min().item(), x.max().item()), per_channel(net.weight), net.bias)
    )


def test_parameters_keys_and_copies_stay() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 4), nn.LSTM(4, 4), nn.MultiheadAttention(4, 2)
    )
    keys, tensors = list(net.state_dict()), [id(t) for t in (*net.parameters(), *net.buffers())]
    prepare(net)
    assert list(net.state_dict()) == keys
    assert [id(t) for t in (*net.parameters(), *net.buffers())] == tensors
    linear = net[2]
    x = torch.randn(3, 4)
    observe(linear, x)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(twin[2](x), linear(x))
        shared, mine = preparation(twin), preparation(net)
        assert shared is not mine, "a copy has ranges of its own"
        assert all(layer.shared is shared for _, _, layer in records(twin))
    unprepare(net)
    assert [type(child) for child in net] == [nn.Conv2d, nn.BatchNorm2d, nn.Linear, nn.LSTM, nn.MultiheadAttention]
    assert all("_lightning_perf_quantized" not in vars(child) for child in net)
    assert list(net.state_dict()) == keys


def test_tied_weights_are_rounded_alike_and_get_both_gradients() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(10, 16), nn.Linear(16, 10, bias=False))
    net[1].weight = net[0].weight
    prepare(net, "int8-weight-only")
    tokens = torch.randint(0, 10, (4, 5))
    net(tokens).square().sum().backward()
    assert net[1].weight is net[0].weight
    rounded = per_channel(net[0].weight.detach()).requires_grad_()
    expected = F.linear(F.embedding(tokens, rounded), rounded)
    torch.testing.assert_close(net(tokens), expected)
    expected.square().sum().backward()
    torch.testing.assert_close(net[0].weight.grad, rounded.grad)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("same", [True, False])
def test_attention_equals_attention_with_rounded_weights(training: bool, same: bool) -> None:
    """``out_proj.weight`` is read past its layer, and in evaluation torch has a one-kernel path past everything."""
    torch.manual_seed(0)
    net = nn.MultiheadAttention(16, 4, batch_first=True).train(training)
    plain = copy.deepcopy(net)
    q = torch.randn(2, 5, 16)
    k = v = q
    if not same:
        k, v = torch.randn(2, 6, 16), torch.randn(2, 6, 16)
    prepare(net)
    with torch.no_grad():
        observe(net, q, k, value=v)
        plain.in_proj_weight.copy_(per_channel(plain.in_proj_weight))
        plain.out_proj.weight.copy_(per_channel(plain.out_proj.weight))
        rounded = [quantize_dequantize(x, x.min().item(), x.max().item()) for x in (q, k, v)]
        expected, weights = plain(*rounded)
        out, attention = net(q, k, value=v)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(attention, weights)
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_transformer_layer_rounds_in_evaluation_too() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True).eval()
    net = nn.TransformerEncoder(layer, 2)
    x = torch.randn(2, 5, 16)
    with torch.no_grad():
        expected = net(x)
        prepare(net)
        observe(net, x)
        in_evaluation = net(x)
        in_training = net.train()(x)
    torch.testing.assert_close(in_evaluation, in_training)
    assert 1e-4 < (in_evaluation - expected).norm() / expected.norm() < 0.1
    assert type(unprepare(net).layers[0]) is nn.TransformerEncoderLayer


@pytest.mark.parametrize("cls", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_equal_those_with_rounded_weights(cls: type[nn.RNNBase]) -> None:
    torch.manual_seed(0)
    net = cls(8, 16, 2, bidirectional=True)
    plain = copy.deepcopy(net)
    with torch.no_grad():
        for name, weight in plain.named_parameters():
            if name.startswith("weight"):
                weight.copy_(per_channel(weight))
    prepare(net)
    packed = nn.utils.rnn.pack_sequence([torch.randn(4, 8), torch.randn(2, 8)])
    torch.testing.assert_close(net(packed)[0].data, plain(packed)[0].data)
    assert all(net._flat_weights[i] is getattr(net, name) for i, name in enumerate(net._flat_weights_names))
    net(packed)[0].data.sum().backward()
    plain(packed)[0].data.sum().backward()
    torch.testing.assert_close(net.weight_hh_l0.grad, plain.weight_hh_l0.grad)


def test_transposed_convolutions_have_their_channels_along_the_second_axis() -> None:
    net = nn.ConvTranspose2d(3, 5, 3)
    prepare(net, "int8-weight-only")
    x = torch.randn(2, 3, 4, 4)
    weight = per_channel(net.weight.detach().transpose(0, 1)).transpose(0, 1)
    torch.testing.assert_close(net(x), F.conv_transpose2d(x, weight, net.bias))


def test_activation_checkpointing_sees_the_same_values_again() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    prepare(net)
    x = torch.randn(4, 8)
    observe(net, x)
    net(x).sum().backward()
    expected = net[0].weight.grad.clone()
    net[0].weight.grad = None
    torch.utils.checkpoint.checkpoint(net, x, use_reentrant=False).sum().backward()
    assert torch.equal(net[0].weight.grad, expected)


def test_an_error_inside_leaves_the_parameters_in_place() -> None:
    net = nn.Linear(8, 4)
    prepare(net, "int8-weight-only")
    with pytest.raises(RuntimeError, match="shapes"):
        net(torch.randn(3, 5))
    assert isinstance(net.weight, nn.Parameter)
    assert "weight" not in vars(net)


def test_weights_computed_by_torchs_own_tools() -> None:
    """Weight norm, pruning and parametrizations replace ``weight``: left in float, and said."""
    nets = [
        nn.utils.parametrizations.weight_norm(nn.Linear(8, 4)),
        nn.utils.spectral_norm(nn.Linear(8, 4)),
        nn.utils.prune.l1_unstructured(nn.Linear(8, 4), "weight", 0.5),
    ]
    net = nn.Sequential(*nets, nn.Linear(4, 4))
    shared = prepare(net)
    assert sorted(shared.left) == ["0", "1", "2"]
    assert all("its weight is" in reason for reason in shared.left.values())


def test_the_module_may_do_what_no_tracer_can_follow() -> None:
    """Control flow by data, a dictionary as input, a layer called several times, another one never."""

    class Wild(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.step, self.never = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            x = batch["x"]
            while float(x.detach().norm()) < 100:
                x = self.step(x) * 3
            return x

    torch.manual_seed(0)
    net = Wild()
    shared = prepare(net)
    batch = {"x": torch.randn(2, 4)}
    shared.observing = True
    with Watch(net):
        net(batch)
    shared.ranges.take_in()
    shared.observing = False
    expected = unprepare(copy.deepcopy(net))(batch)
    assert 0 < (net(batch) - expected).norm() / expected.norm() < 0.2
    assert (shared.ranges.span("step<input") is None, shared.ranges.span("never<input")) == (False, None)


def test_rounded_weight_of_a_layer_is_that_of_the_function() -> None:
    net = nn.Linear(64, 4, bias=False)
    prepare(net, "int4")
    assert torch.equal(net(torch.eye(64)).T, round_weight(net.weight, get_scheme("int4")))
