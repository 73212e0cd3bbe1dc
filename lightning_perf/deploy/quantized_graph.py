"""A float ONNX graph to an int8 one: which tensors are quantized, with which range, and where Q and DQ stand.

Weights become int8 per output channel, activations uint8 per tensor. Q/DQ pairs stand where the runtime folds them into
integer kernels: at the inputs of convolutions and linear layers, and from there backwards through everything that computes
on bytes as well (relu, pooling, residual additions, slices).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from lightning_perf.deploy.onnx_graph import OnnxGraph, attribute, label_of

LAYERS = {"Conv": 0, "ConvTranspose": 1, "Gemm": 0, "MatMul": 1}
"""Operators with a constant weight, and the axis of its output channels (Gemm: with ``transB``)."""
_MOVERS = {"MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Pad"}
_BYTE_MOVERS = {"Slice", "Pad"}
_SAME_RANGE = {*_MOVERS}
_THROUGH = {*_MOVERS, "Relu", "Add", "Concat", "AveragePool", "GlobalAveragePool"}

Range = tuple[float, float]


@dataclass(frozen=True)
class LayerRanges:
    """What training or calibration knows of one layer; None: take it from the graph.

    ``weight_scale`` has one entry per output channel (or one in all); ``input`` is the smallest and largest value seen.
    ``computed`` is the shape of the weight where the user's own forward may compute another one of it, such as a
    standardised one, and more products than one; None for a forward of torch. ``layer`` is the layer's own name, where
    they are kept under that of a batch norm too.
    """

    weight_scale: np.ndarray | None = None
    input: Range | None = None
    output: Range | None = None
    computed: tuple[int, ...] | None = None
    layer: str = ""

    def covers(self, weight: np.ndarray) -> bool:
        """Whether a product with ``weight`` is the one that is known here, and not a further one of the layer's forward."""
        return self.computed is None or weight.size == prod(self.computed)


@dataclass
class Plan:
    """Which layers and tensors become integers, and which layers stay in float, with the reason."""

    layers: list[Any] = field(default_factory=list)
    tensors: dict[str, None] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)


def plan(graph: OnnxGraph, ranges: Mapping[str, LayerRanges] | None, *, fused_sum: bool) -> Plan:
    """Choose the layers and, backwards from their inputs, the tensors.

    Args:
        graph: the float graph.
        ranges: layers to quantize, by their name in the module; None: all of them.
        fused_sum: the runtime adds a residual inside of the convolution (OpenVINO), so that the convolution's own output
            is to stay unquantized; otherwise (ONNX Runtime) both sides of a residual addition are bytes.
    """
    made = Plan()
    for node in graph.nodes:
        if node.op_type not in LAYERS or node.input[1] not in graph.constants:
            continue
        name = label_of(node)
        reason = _why_float(graph, node, name, ranges)
        if not reason and ranges is not None and not ranges[name].covers(weight := graph.array(node.input[1])):
            name = f"{name} (its product with {' x '.join(map(str, weight.shape))})"
            reason = "the forward of its class makes it beside that with its weight"
        if reason:
            made.left[name] = reason
        else:
            made.layers.append(node)
    pending = [node.input[0] for node in made.layers]
    while pending:
        tensor = pending.pop()
        if tensor in made.tensors:
            continue
        made.tensors[tensor] = None
        maker = graph.maker.get(tensor)
        if maker is None or maker.op_type not in _THROUGH:
            continue
        if maker.op_type == "Relu":
            before = graph.maker.get(maker.input[0])
            if graph.only_reader(maker.input[0]) is None or before is None:
                pending.append(maker.input[0])
                continue
            maker = before
        if maker.op_type in _THROUGH - {"Relu"}:
            pending.extend(_wanted_inputs(graph, maker, fused_sum))
    return made


def _why_float(graph: OnnxGraph, node: Any, name: str, ranges: Mapping[str, LayerRanges] | None) -> str | None:
    if ranges is not None and name not in ranges:
        inside = any(known.startswith(f"{name}.") for known in ranges)
        return "only its weights are rounded" if inside else "the module was prepared without it"
    weight = graph.array(node.input[1])
    if weight.dtype != np.float32:
        return f"its weight is {weight.dtype}"
    if node.op_type == "MatMul" and weight.ndim != 2:
        return f"its weight has {weight.ndim} dimensions"
    if node.op_type == "Gemm" and (attribute(node, "transA", 0) or attribute(node, "alpha", 1.0) != 1.0):
        return "a transposed or scaled product"
    return None


def _wanted_inputs(graph: OnnxGraph, node: Any, fused_sum: bool) -> list[str]:
    """Inputs of a node on bytes that have to be bytes too; none for an addition with a constant."""
    if node.op_type != "Add":
        count = len(node.input) if node.op_type == "Concat" else 1
        return [name for name in list(node.input)[:count] if name not in graph.constants]
    inputs = list(graph.activations(node))
    if len(inputs) < 2:
        return []
    if fused_sum:
        for name in inputs:
            maker = graph.maker.get(name)
            if maker is not None and maker.op_type == "Conv" and graph.only_reader(name) is not None:
                return [other for other in inputs if other != name]
    return inputs


def activation_grid(low: float, high: float) -> tuple[np.float32, np.uint8]:
    """Scale and zero point of uint8 for a range; zero is representable, and a range without width becomes one step.

    Raises:
        ValueError: a bound that is not finite.

    Example::

        >>> scale, zero = activation_grid(-1.0, 1.55)
        >>> round(float(scale), 4), int(zero)
        (0.01, 100)
    """
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"range [{low}, {high}] is not finite; check the calibration inputs for NaN and infinity")
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32((high - low) / 255 or 1.0)
    return scale, np.uint8(np.clip(np.rint(-low / scale), 0, 255))


def quantized_weight(
    weight: np.ndarray, axis: int, scale: np.ndarray | np.float32 | None
) -> tuple[np.ndarray, np.ndarray]:
    """Int8 weight and float32 scale per channel along ``axis``; ``scale`` defaults to the largest magnitude / 127.

    Example::

        >>> quantized_weight(np.array([[1.27, 0.5]], np.float32), 0, None)[0].tolist()
        [[127, 50]]
    """
    others = tuple(index for index in range(weight.ndim) if index != axis)
    steps = np.asarray(np.abs(weight).max(axis=others) / 127 if scale is None else scale, np.float32)
    steps = np.broadcast_to(steps.reshape(-1), (weight.shape[axis],)).copy()
    steps[steps == 0] = 1.0
    shape = [-1 if index == axis else 1 for index in range(weight.ndim)]
    return np.clip(np.rint(weight / steps.reshape(shape)), -127, 127).astype(np.int8), steps


def quantize_graph(
    graph: OnnxGraph,
    observed: Mapping[str, Range],
    ranges: Mapping[str, LayerRanges] | None = None,
    *,
    fused_sum: bool = False,
    shortcuts: Collection[str] = (),
) -> Plan:
    """Insert Q/DQ pairs into the graph, in place.

    Args:
        graph: the float graph, batch norms folded.
        observed: smallest and largest value of every computed tensor on calibration inputs.
        ranges: ranges of a prepared module by layer; they win over ``observed``. None: quantize every layer.
        fused_sum: as for :func:`plan`.
        shortcuts: names of convolutions whose weight is an identity; between bytes they move them unchanged.

    Returns:
        What was quantized and what was left in float.

    Raises:
        ValueError: no layer can be quantized, or a range is not finite.
    """
    made = plan(graph, ranges, fused_sum=fused_sum)
    if not made.layers:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in made.left.items()) or "none has a constant weight"
        raise ValueError(f"no layer of the graph can be quantized ({reasons}); leave int8 out of precisions.")
    known = {node.input[0]: own for node in made.layers if (own := _known_input(graph, node, ranges)) is not None}
    _reach_back(graph, known)
    moved = _join_shortcuts(graph, made, shortcuts)
    grids = {
        tensor: activation_grid(*_range(graph, moved.get(tensor, tensor), observed, known)) for tensor in made.tensors
    }
    _drop_relus(graph, grids)
    writer = _Writer(graph, grids)
    nodes: list[Any] = [made_node for name in _graph_inputs(graph) for made_node in writer.pair(name)]
    layers = {node.name for node in made.layers}
    for node in graph.nodes:
        if _on_bytes(graph, node, grids):
            nodes += writer.on_bytes(node)
            continue
        rounds = node.name in layers or label_of(node) in (ranges or {}) or bool(grids.keys() & set(node.output))
        in_float = set() if rounds else set(_graph_inputs(graph))  # what is only read is there unrounded
        renamed = [f"{name}_dq" if name in grids and name not in in_float else name for name in node.input]
        if node.name in layers:
            own = (ranges or {}).get(label_of(node), LayerRanges())
            scale = np.float32(1) if node.output[0] in moved else own.weight_scale
            nodes += writer.weight(node, renamed, scale, grids[node.input[0]][0])
        del node.input[:]
        node.input.extend(renamed)
        nodes.append(node)
        nodes += [item for name in node.output for item in writer.pair(name)]
    graph.rewrite(nodes)
    return made


def _known_input(graph: OnnxGraph, node: Any, ranges: Mapping[str, LayerRanges] | None) -> Range | None:
    """The known range of a layer's input, if it is this node's: a forward of the user's own may have changed it before."""
    name = label_of(node)
    own = (ranges or {}).get(name, LayerRanges())
    maker = graph.maker.get(node.input[0])
    while own.computed is not None and maker is not None and label_of(maker) in (name, own.layer):
        if not _only_moves(graph, maker):
            return None
        maker = graph.maker.get(maker.input[0])
    return own.input


def _graph_inputs(graph: OnnxGraph) -> list[str]:
    return [item.name for item in graph.model.graph.input if item.name not in graph.constants]


def _range(graph: OnnxGraph, tensor: str, observed: Mapping[str, Range], known: Mapping[str, Range]) -> Range:
    """A tensor's range; what only moves values around has the range of what it moves."""
    if tensor in known:
        return known[tensor]
    maker = graph.maker.get(tensor)
    if maker is not None and _only_moves(graph, maker) and maker.input[0] not in graph.constants:
        return _range(graph, maker.input[0], observed, known)
    return observed[tensor]


def _join_shortcuts(graph: OnnxGraph, made: Plan, shortcuts: Collection[str]) -> dict[str, str]:
    """Quantize the shortcuts that stand between bytes; returns the tensor whose grid each one's output has."""
    moved = {}
    for node in graph.nodes:
        if node.name in shortcuts and node.input[0] in made.tensors and node.output[0] in made.tensors:
            made.left.pop(label_of(node), None)
            made.layers += [node] if all(node is not layer for layer in made.layers) else []
            moved[node.output[0]] = node.input[0]
    return moved


def _reach_back(graph: OnnxGraph, known: dict[str, Range]) -> None:
    """A known range is also that of what is only moved into its place, so that a pool in between can work on the bytes."""
    for tensor in list(known):
        maker = graph.maker.get(tensor)
        while maker is not None and _only_moves(graph, maker):
            source = maker.input[0]
            if source in known or source in graph.constants or graph.only_reader(source) is None:
                break
            known[source] = known[tensor]
            maker = graph.maker.get(source)


def _only_moves(graph: OnnxGraph, node: Any) -> bool:
    """Whether a node's output has no value but its input's and zero; a pad of another value makes new ones."""
    if node.op_type != "Pad" or attribute(node, "mode", b"constant") != b"constant":
        return node.op_type in _SAME_RANGE
    fill = node.input[2] if len(node.input) > 2 else ""
    return not fill or (fill in graph.constants and bool((graph.array(fill) == 0).all()))


def _drop_relus(graph: OnnxGraph, grids: Mapping[str, tuple[np.float32, np.uint8]]) -> None:
    """Take out every relu in front of bytes whose zero point is 0: quantizing clips at zero anyway."""
    kept = []
    for node in graph.nodes:
        source = node.input[0] if node.op_type == "Relu" else ""
        grid = grids.get(node.output[0]) if source else None
        maker = graph.maker.get(source)
        seen = node.output[0] in graph.outputs  # by the caller, in float
        lone = maker is not None and graph.only_reader(source) is not None
        if grid is None or grid[1] != 0 or source in grids or seen or maker is None or not lone:
            kept.append(node)
        else:
            outputs = [node.output[0] if name == source else name for name in maker.output]
            del maker.output[:]
            maker.output.extend(outputs)
    graph.rewrite(kept)


def _on_bytes(graph: OnnxGraph, node: Any, grids: Mapping[str, Any]) -> bool:
    """Whether a node that only moves values around reads and writes the same grid, so that it can move the bytes."""
    return (
        node.op_type in _BYTE_MOVERS
        and _only_moves(graph, node)
        and node.input[0] in grids
        and node.output[0] in grids
        and grids[node.input[0]] == grids[node.output[0]]
    )


class _Writer:
    """Makes the nodes and constants of Q/DQ pairs."""

    def __init__(self, graph: OnnxGraph, grids: Mapping[str, tuple[np.float32, np.uint8]]) -> None:
        self.graph, self.grids = graph, grids

    def pair(self, tensor: str) -> list[Any]:
        """Q and DQ behind a tensor that is to be bytes; nothing for others."""
        if tensor not in self.grids:
            return []
        scale, zero = self.grids[tensor]
        grid = [
            self.graph.set_constant(f"{tensor}_scale", np.asarray(scale)),
            self.graph.set_constant(f"{tensor}_zero", np.asarray(zero)),
        ]
        make = self.graph.helper.make_node
        return [
            make("QuantizeLinear", [tensor, *grid], [f"{tensor}_q"], f"{tensor}_quantize"),
            make("DequantizeLinear", [f"{tensor}_q", *grid], [f"{tensor}_dq"], f"{tensor}_dequantize"),
        ]

    def on_bytes(self, node: Any) -> list[Any]:
        """The node itself on bytes, and a DQ behind it."""
        zero = self.grids[node.input[0]][1]
        moved = type(node)()
        moved.CopyFrom(node)
        moved.input[0], moved.output[0] = f"{node.input[0]}_q", f"{node.output[0]}_q"
        if node.op_type == "Pad":
            while len(moved.input) < 3:
                moved.input.append("")
            moved.input[2] = self.graph.set_constant(f"{node.output[0]}_fill", np.asarray(zero))
        return [moved, self.pair(node.output[0])[1]]

    def weight(
        self, node: Any, inputs: list[str], scale: np.ndarray | np.float32 | None, step: np.float32
    ) -> list[Any]:
        """DQ in front of a layer's weight and bias; ``inputs`` is changed to read them."""
        weight = self.graph.array(node.input[1])
        axis = _channel_axis(node)
        values, scales = quantized_weight(weight, axis, scale)
        name = f"{node.name}_weight"
        made = [self._constant(name, values, scales, axis)]
        inputs[1] = f"{name}_dq"
        if node.op_type in {"Conv", "Gemm"} and len(node.input) > 2 and node.input[2] in self.graph.constants:
            bias = self.graph.array(node.input[2])
            if bias.shape == scales.shape:
                limit = 2**31 - 1
                whole = np.clip(np.rint(bias.astype(np.float64) / (scales * step)), -limit, limit)
                made.append(self._constant(f"{node.name}_bias", whole.astype(np.int32), scales * step, 0))
                inputs[2] = f"{node.name}_bias_dq"
        return made

    def _constant(self, name: str, values: np.ndarray, scales: np.ndarray, axis: int) -> Any:
        inputs = [
            self.graph.set_constant(f"{name}_q", values),
            self.graph.set_constant(f"{name}_scale", scales),
            self.graph.set_constant(f"{name}_zero", np.zeros(scales.shape, values.dtype)),
        ]
        return self.graph.helper.make_node("DequantizeLinear", inputs, [f"{name}_dq"], f"{name}_dequantize", axis=axis)


def _channel_axis(node: Any) -> int:
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return LAYERS[node.op_type]
