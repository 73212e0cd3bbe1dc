"""Int8 of layers whose classes have a forward of their own, against the same arithmetic written by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lightning_perf as lp
from lightning_perf.quantization.convert import ranges
from tests.quantization.test_layers import per_channel, quantize_dequantize


def standardised(weight: Tensor) -> Tensor:
    return (weight - weight.mean((1, 2, 3), keepdim=True)) / (weight.std((1, 2, 3), keepdim=True) + 1e-5)


class Standardised(nn.Conv2d):
    """Weight standardisation (Qiao et al. 2019): the graph's weight is none of the module's."""

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(input, standardised(self.weight), self.bias, padding=self.padding)


class Equalised(nn.Linear):
    """The weight times a constant, as StyleGAN has it."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight * 7, self.bias)


class ScaledInput(nn.Linear):
    """The input times a constant, so that the range of the layer's input is not that of the product's."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input * 7, self.weight, self.bias)


class LowRank(nn.Linear):
    """A product of low rank beside that with the weight, as LoRA has it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.down = nn.Parameter(torch.randn(4, self.in_features) / 8)
        self.up = nn.Parameter(torch.randn(self.out_features, 4))

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + F.linear(F.linear(input, self.down), self.up)


class Merged(LowRank):
    """The two products as one."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight + self.up @ self.down, self.bias)


def by_hand(net: Any, x: Tensor, low: float, high: float) -> Tensor:
    """With the range of the input that calibration found."""
    weight, rounded = per_channel(net.weight), quantize_dequantize(x, low, high)
    if isinstance(net, Standardised):
        return F.conv2d(rounded, per_channel(standardised(weight)), net.bias, padding=1)
    if isinstance(net, Merged):
        return F.linear(rounded, per_channel(weight + net.up @ net.down), net.bias)
    if isinstance(net, LowRank):
        return F.linear(rounded, weight, net.bias) + F.linear(F.linear(rounded, net.down), net.up)
    if isinstance(net, Equalised):
        return F.linear(rounded, weight * 7, net.bias)
    return F.linear(quantize_dequantize(7 * x, float(7 * x.min()), float(7 * x.max())), weight, net.bias)


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "standardised": (lambda: Standardised(8, 16, 3, padding=1), (8, 8, 6, 6)),
    "too large for the exporter to fold": (lambda: Standardised(256, 256, 3, padding=1), (2, 256, 3, 3)),
    "equalised": (lambda: Equalised(16, 8), (64, 16)),
    "scaled input": (lambda: ScaledInput(16, 8), (64, 16)),
    "low rank": (lambda: LowRank(16, 8), (64, 16)),
    "merged": (lambda: Merged(16, 8), (64, 16)),
}


@pytest.mark.parametrize("name", NETS)
@torch.no_grad()
def test_the_artefact_computes_what_is_computed_by_hand(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make, shape = NETS[name]
    net, x = make().eval(), torch.randn(shape)
    in_float = net(x)
    module = lp.quantize(nn.Sequential(net), [x])
    made = lp.export(module, x, tmp_path / "m.lpx", runtimes=["onnxruntime", "openvino"], precisions=["int8"], rounds=0)
    span = ranges(module)["0"].input
    assert span is not None
    expected = by_hand(net, x, *span)
    for runtime in ("onnxruntime", "openvino"):
        assert made.manifest["variants"][f"{runtime}-int8"]["passed"], made.manifest["variants"]
        found = lp.load_artifact(made.path, f"{runtime}-int8")(x)
        assert float((found - expected).norm() / (expected - in_float).norm()) < 0.1


def test_a_further_product_of_a_layer_is_said(tmp_path: Path) -> None:
    net = nn.Sequential(LowRank(16, 8)).eval()
    made = lp.export(
        net, torch.randn(64, 16), tmp_path / "m.lpx", runtimes="onnxruntime", precisions=["int8"], rounds=0
    )
    notes = made.manifest["variants"]["onnxruntime-int8"]["notes"]
    assert sorted(note.partition(" left in float: ")[0] for note in notes) == [
        "0 (its product with 4 x 16)",
        "0 (its product with 8 x 4)",
    ]


@torch.no_grad()
def test_a_batch_norm_behind_a_computed_weight(tmp_path: Path) -> None:
    """The exporter folds it, and names what it makes by the norm."""
    torch.manual_seed(0)
    conv, norm, x = Standardised(8, 16, 3, padding=1), nn.BatchNorm2d(16).train(), torch.randn(8, 8, 6, 6)
    for _ in range(20):
        norm(conv(x))
    in_float = norm.eval()(conv(x))
    module = lp.quantize(nn.Sequential(conv, norm).eval(), [x])
    made = lp.export(module, x, tmp_path / "m.lpx", runtimes="onnxruntime", precisions=["int8"], rounds=0)
    assert made.manifest["variants"]["onnxruntime-int8"]["notes"] == []
    span = ranges(module)["0"].input
    assert span is not None
    expected = norm(by_hand(conv, x, *span))
    found = lp.load_artifact(made.path)(x)
    assert float((found - expected).norm() / (expected - in_float).norm()) < 0.1
