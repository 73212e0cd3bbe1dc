"""Parameter-free shortcuts of residual networks, written as what integer kernels are fast at: a 1x1 convolution.

"Option A" of He et al. takes every second pixel and appends channels of zeros. As Slice and Pad this leaves the layout that
quantized convolutions work in; as a convolution whose weight is an identity it stays there, and runtimes add it in place.
Source: He et al. 2016, https://arxiv.org/abs/1512.03385, section 3.3.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lightning_perf.deploy.onnx_graph import OnnxGraph, attribute


def convolve_shortcuts(graph: OnnxGraph) -> list[str]:
    """Replace every chain of plane slices and a channel pad by a convolution; returns the names of the convolutions."""
    channels = {
        item.name: [dim.dim_value for dim in item.type.tensor_type.shape.dim]
        for item in (*graph.model.graph.value_info, *graph.model.graph.input)
    }
    replaced: dict[str, Any] = {}
    dropped: set[str] = set()
    for node in graph.nodes:
        pads = _channel_pads(graph, node)
        if pads is None:
            continue
        strides, source, chain = [1, 1], node.input[0], [node.name]
        while (step := _plane_step(graph, graph.maker.get(source))) is not None and graph.only_reader(
            source
        ) is not None:
            maker = graph.maker[source]
            strides = [old * new for old, new in zip(strides, step, strict=True)]
            source = maker.input[0]
            chain.append(maker.name)
        shape = channels.get(source, [])
        if len(shape) != 4 or not shape[1] or strides == [1, 1]:
            continue
        before, after = pads
        weight = np.zeros((before + shape[1] + after, shape[1], 1, 1), np.float32)
        weight[before : before + shape[1], :, 0, 0] = np.eye(shape[1], dtype=np.float32)
        name = graph.set_constant(f"{node.name}_identity", weight)
        made = graph.helper.make_node(
            "Conv", [source, name], list(node.output), f"{node.name}_shortcut", strides=strides
        )
        replaced[node.name] = made
        dropped |= set(chain[1:])
    nodes = [replaced.get(node.name, node) for node in graph.nodes if node.name not in dropped]
    if replaced:
        kept = list(graph.model.graph.value_info)
        graph.rewrite(nodes)
        graph.model.graph.value_info.extend(kept)
    return [node.name for node in replaced.values()]


def _channel_pads(graph: OnnxGraph, node: Any) -> tuple[int, int] | None:
    """Zeros that a node appends before and behind the channels of an image; None for any other node."""
    if (
        node.op_type != "Pad"
        or attribute(node, "mode", b"constant") != b"constant"
        or (len(node.input) > 3 and node.input[3])
    ):
        return None
    if node.input[1] not in graph.constants:
        return None
    if (
        len(node.input) > 2
        and node.input[2]
        and (node.input[2] not in graph.constants or graph.array(node.input[2]) != 0)
    ):
        return None
    pads = graph.array(node.input[1]).tolist()
    if len(pads) != 8 or any(pads[index] for index in (0, 2, 3, 4, 6, 7)) or pads[1] < 0 or pads[5] < 0:
        return None
    return int(pads[1]), int(pads[5])


def _plane_step(graph: OnnxGraph, node: Any) -> list[int] | None:
    """Strides of a Slice that takes every n-th row and column from the first one on; None for any other node."""
    if node is None or node.op_type != "Slice" or len(node.input) != 5:
        return None
    if any(name not in graph.constants for name in node.input[1:]):
        return None
    starts, ends, axes, steps = (graph.array(name).reshape(-1).tolist() for name in node.input[1:])
    strides = [1, 1]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if axis not in (2, 3) or start != 0 or step < 1 or end < 2**31 - 1:
            return None
        strides[axis - 2] *= step
    return strides
