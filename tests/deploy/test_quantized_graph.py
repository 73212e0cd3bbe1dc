"""Int8 graphs: grids by hand, Q/DQ placement per runtime, and what each runtime fuses them into."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from torch import nn

from lightning_perf.deploy.onnx_export import float_graph, graph_for
from lightning_perf.deploy.onnx_graph import OnnxGraph, layer_of, save
from lightning_perf.deploy.openvino import share_constants
from lightning_perf.deploy.quantized_graph import LayerRanges, activation_grid, quantize_graph, quantized_weight
from lightning_perf.deploy.serve import open_openvino
from lightning_perf.deploy.shortcuts import convolve_shortcuts
from tests.deploy.conftest import residual, source_of


@pytest.fixture(scope="module")
def source() -> Any:
    torch.manual_seed(1)
    return source_of(residual(), torch.randn(8, 3, 12, 12))


def run(model: Any, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry(
        "session.x64quantprecision", "1"
    )  # as in serve.py: bytes do not overflow without VNNI
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def fused(model: Any, path: Path) -> Counter[str]:
    """Operators that ONNX Runtime really executes."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def test_grids_by_hand() -> None:
    scale, zero = activation_grid(-1.0, 4.1)
    assert (round(float(scale), 6), int(zero)) == (0.02, 50)
    assert activation_grid(0.5, 2.55)[1] == 0  # zero belongs to the range even where nothing was below 0.5
    assert activation_grid(0.0, 0.0) == (1.0, 0)
    with pytest.raises(ValueError, match=r"range \[nan, 1\.0\] is not finite"):
        activation_grid(float("nan"), 1.0)


def test_weights_by_hand() -> None:
    weight = np.array([[1.27, -0.635], [0.0, 0.0]], np.float32)
    values, scale = quantized_weight(weight, 0, None)
    assert values.tolist() == [[127, -64], [0, 0]]
    np.testing.assert_allclose(scale, [0.01, 1.0])
    given, _ = quantized_weight(weight, 0, np.array([0.02, 1.0]))
    assert given.tolist() == [[64, -32], [0, 0]]


def test_onnx_runtime_fuses_everything_into_integers(source: Any, tmp_path: Path) -> None:
    model, _ = graph_for(source, "int8")
    found = fused(model, tmp_path / "o.onnx")
    assert found["QLinearConv"] == 4  # stem, two, and the shortcut
    assert found["QLinearAdd"] == found["QLinearGlobalAveragePool"] == found["QGemm"] == 1
    assert found["Conv"] == found["FusedConv"] == found["Add"] == found["Relu"] == found["DequantizeLinear"] == 0


def test_openvino_gets_no_rounding_between_a_convolution_and_its_sum(source: Any) -> None:
    for fused_sum, expected in ((False, 1), (True, 0)):
        model, _ = graph_for(source, "int8", fused_sum=fused_sum)
        readers = {name: node for node in model.graph.node for name in node.input}
        nodes = {name: node for node in model.graph.node for name in node.output}
        (add,) = (node for node in model.graph.node if node.op_type == "Add")
        convolutions = [name for name in add.input if nodes[name].op_type == "Conv"]
        assert len(convolutions) == 1 - expected
        assert readers


@pytest.mark.parametrize("fused_sum", [False, True])
def test_shortcuts_move_bytes_unchanged(source: Any, fused_sum: bool) -> None:
    """The identity in front of the sum is int8 with a weight of ones, and its output has its input's grid."""
    graph = OnnxGraph(graph_for(source, "int8", fused_sum=fused_sum)[0])
    (shortcut,) = (node for node in graph.nodes if node.name.endswith("_shortcut"))
    weight = graph.maker[shortcut.input[1]]
    assert weight.op_type == "DequantizeLinear"
    assert np.unique(graph.array(weight.input[0])).tolist() == [0, 1]
    np.testing.assert_array_equal(graph.array(weight.input[1]), 1.0)
    before = graph.maker[shortcut.input[0]]
    after = graph.only_reader(shortcut.output[0])
    assert after is not None
    assert after.op_type == "QuantizeLinear"
    for index in (1, 2):
        np.testing.assert_array_equal(graph.array(before.input[index]), graph.array(after.input[index]))


def test_a_shortcut_between_floats_stays_in_float() -> None:
    torch.manual_seed(1)
    graph = OnnxGraph(float_graph(source_of(residual(), torch.randn(2, 3, 12, 12)), "fp32"))
    shortcuts = convolve_shortcuts(graph)
    observed = {name: (-1.0, 1.0) for node in graph.nodes for name in (*node.input, *node.output)}
    made = quantize_graph(graph, observed, {"head": LayerRanges()}, shortcuts=shortcuts)
    assert [node.op_type for node in made.layers] == ["Gemm"]
    (shortcut,) = (node for node in graph.nodes if node.name in shortcuts)
    assert shortcut.input[1] in graph.constants


def test_the_int8_graph_is_close_to_the_float_one(source: Any) -> None:
    x = np.random.default_rng(0).standard_normal((5, 3, 12, 12)).astype(np.float32)
    wanted = run(float_graph(source, "fp32"), x)
    for fused_sum in (False, True):
        found = run(graph_for(source, "int8", fused_sum=fused_sum)[0], x)
        assert 1e-5 < np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < 0.05


def test_shortcuts_as_convolutions_change_no_bit(source: Any) -> None:
    model = float_graph(source, "fp32")
    x = np.random.default_rng(0).standard_normal((5, 3, 12, 12)).astype(np.float32)
    before = run(model, x)
    assert len(convolve_shortcuts(OnnxGraph(model))) == 1
    assert not any(node.op_type in {"Slice", "Pad"} for node in model.graph.node)
    np.testing.assert_allclose(run(model, x), before, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("pad", [(0, 1, 0, 0, 0, 4), (0, 0, 0, 0, 0, 4)])
def test_other_slices_stay(pad: tuple[int, ...]) -> None:
    """A pad of the plane, or a slice that does not begin at the first pixel, is no such shortcut."""

    class Other(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            start = 0 if any(pad[:4]) else 1
            return nn.functional.pad(x[:, :, start::2, start::2], pad)

    model = float_graph(source_of(Other(), torch.randn(2, 4, 6, 6)), "fp32")
    assert convolve_shortcuts(OnnxGraph(model)) == []


def test_given_ranges_win_and_layers_without_stay_in_float(source: Any, tmp_path: Path) -> None:
    graph = OnnxGraph(float_graph(source, "fp32"))
    observed = {name: (-1.0, 1.0) for node in graph.nodes for name in (*node.input, *node.output)}
    names = {layer_of(node): node.name for node in graph.nodes if node.op_type == "Conv"}
    assert set(names) == {"stem.0", "conv1", "conv2"}
    scales = np.linspace(0.01, 0.02, 32, dtype=np.float32)
    made = quantize_graph(graph, observed, {"conv2": LayerRanges(scales, (0.0, 5.1))})
    assert set(made.left) == {"stem.0", "conv1", "head"}
    layer = next(node for node in graph.nodes if node.name == names["conv2"])
    makers = {name: node for node in graph.nodes for name in node.output}
    np.testing.assert_allclose(graph.array(makers[layer.input[0]].input[1]), 0.02)
    np.testing.assert_array_equal(graph.array(makers[layer.input[1]].input[1]), scales)


def test_a_known_range_reaches_back_through_a_pool(tmp_path: Path) -> None:
    """A layer's own range, narrower than what was observed, holds before the pool too: the pool works on bytes."""
    torch.manual_seed(2)
    net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 16, 3), nn.Flatten())
    graph = OnnxGraph(float_graph(source_of(net, torch.randn(4, 3, 12, 12)), "fp32"))
    observed = {name: (-1.0, 1.0) for node in graph.nodes for name in (*node.input, *node.output)}
    scales = np.full(16, 0.01, np.float32)
    quantize_graph(graph, observed, {"0": LayerRanges(scales, (-2.0, 2.0)), "3": LayerRanges(scales, (0.0, 0.51))})
    (pool,) = (node for node in graph.nodes if node.op_type == "MaxPool")
    makers = {name: node for node in graph.nodes for name in node.output}
    np.testing.assert_allclose(graph.array(makers[pool.input[0]].input[1]), 0.002, rtol=1e-6)
    found = fused(graph.model, tmp_path / "o.onnx")
    assert found["QLinearConv"] == 1  # the second one makes the float output
    assert found["MaxPool"] == 0
    assert found["NhwcMaxPool"] == 1


def test_equal_constants_of_openvino_become_one_and_change_no_bit(source: Any, tmp_path: Path) -> None:
    model, _ = graph_for(source, "int8", fused_sum=True)
    save(model, tmp_path / "int8.onnx")
    x = np.random.default_rng(0).standard_normal((5, 3, 12, 12)).astype(np.float32)
    results, counts = [], []
    for share in (False, True):
        read = openvino.convert_model(str(tmp_path / "int8.onnx"))
        dropped = share_constants(read) if share else 0
        constants = [node for node in read.get_ordered_ops() if node.get_type_name() == "Constant"]
        counts.append(len(constants) + dropped)
        openvino.save_model(read, str(tmp_path / "model.xml"), compress_to_fp16=False)
        results.append(open_openvino(tmp_path / "model.xml", {}, 1)([x])[0])
        if share:
            small = [
                (str(c.get_element_type()), c.data.shape, c.data.tobytes()) for c in constants if c.data.nbytes < 9
            ]
            assert dropped > 10
            assert len(small) == len(set(small))
    assert counts[0] == counts[1]
    np.testing.assert_array_equal(results[0], results[1])


@pytest.mark.parametrize("fill", [0.25, 2.0])
def test_a_pad_of_another_value_is_no_mover(fill: float) -> None:
    """It does not become zeros, and is not rounded into a range that does not hold it."""

    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(nn.functional.pad(torch.relu(self.one(x)), (1, 1, 1, 1), value=fill))

    torch.manual_seed(3)
    module = Padded().eval()
    x = torch.randn(6, 3, 12, 12)
    source = source_of(module, x)
    model, _ = graph_for(source, "int8")
    (pad,) = (node for node in model.graph.node if node.op_type == "Pad")
    assert not pad.input[0].endswith("_q")
    wanted = module(x).detach().numpy()
    assert np.linalg.norm(run(model, x.numpy()) - wanted) / np.linalg.norm(wanted) < 0.05


def test_a_relu_that_the_caller_sees_stays() -> None:
    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            features = torch.relu(self.one(x))
            return features, self.two(features)

    torch.manual_seed(4)
    module = Features().eval()
    x = torch.randn(6, 3, 12, 12)
    found = run(graph_for(source_of(module, x), "int8")[0], x.numpy())
    wanted = module(x)[0].detach().numpy()
    assert found.min() >= 0
    assert np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < 0.05


def test_an_input_that_is_returned_stays_as_it_is() -> None:
    class Echo(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x[:, :4], self.head(x)

    torch.manual_seed(4)
    x = torch.randn(6, 8)
    model, _ = graph_for(source_of(Echo().eval(), x), "int8")
    assert any(node.op_type == "QuantizeLinear" for node in model.graph.node)
    np.testing.assert_array_equal(run(model, x.numpy()), x[:, :4].numpy())


def test_a_graph_without_weights_is_refused() -> None:
    graph = OnnxGraph(float_graph(source_of(nn.Softmax(-1), torch.randn(2, 3)), "fp32"))
    with pytest.raises(ValueError, match=r"no layer of the graph can be quantized.*leave int8 out"):
        quantize_graph(graph, {})
