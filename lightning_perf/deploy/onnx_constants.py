"""Weights that a graph computes from constants alone, as weight standardisation does: computed once and stored.

The exporter folds small ones only, and runtimes fold the rest when they load; a quantizer has to see them before.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from lightning_perf._optional import require
from lightning_perf.deploy.onnx_graph import OnnxGraph, names_read, onnx

_RANDOM = ("Random", "Bernoulli", "Multinomial")


def compute_weights(graph: OnnxGraph, operators: Collection[str]) -> list[str]:
    """Replace what ``operators`` take as weight or bias by its value where it depends on no input; returns the names.

    Raises:
        ImportError: ONNX Runtime is not installed.
    """
    fixed = set(graph.constants)
    for node in graph.nodes:
        if _repeats(node) and all(not name or name in fixed for name in names_read(node)):
            fixed.update(node.output)
    layers = [node for node in graph.nodes if node.op_type in operators]
    wanted = sorted({name for node in layers for name in node.input[1:] if name in fixed and name in graph.maker})
    if not wanted:
        return []
    stored = {name: graph.set_constant(f"{name}_computed", value) for name, value in _values(graph, wanted).items()}
    for node in layers:
        inputs = [node.input[0], *(stored.get(name, name) for name in node.input[1:])]
        del node.input[:]
        node.input.extend(inputs)
    shapes = list(graph.model.graph.value_info)
    graph.rewrite(_leading_to(graph, graph.outputs))
    graph.model.graph.value_info.extend(shapes)
    return wanted


def _repeats(node: Any) -> bool:
    """Whether a node says the same each time, and nothing runs inside of it."""
    return not node.op_type.startswith(_RANDOM) and not any(item.HasField("g") for item in node.attribute)


def _values(graph: OnnxGraph, wanted: Sequence[str]) -> dict[str, np.ndarray]:
    """What the nodes in front of ``wanted`` compute."""
    runtime = require("onnxruntime", extra="deploy", purpose="calibrating an int8 export")
    part = onnx().ModelProto()
    part.CopyFrom(graph.model)
    for items in (part.graph.node, part.graph.input, part.graph.output, part.graph.value_info):
        del items[:]
    part.graph.node.extend(_leading_to(graph, wanted))
    part.graph.output.extend(onnx().ValueInfoProto(name=name) for name in wanted)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = runtime.InferenceSession(part.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(wanted, session.run(list(wanted), {}), strict=True))


def _leading_to(graph: OnnxGraph, names: Collection[str]) -> list[Any]:
    """The nodes that ``names`` are computed by, in the order of the graph."""
    needed = set(names)
    found = []
    for node in reversed(graph.nodes):
        if needed & set(node.output):
            needed.update(names_read(node))
            found.append(node)
    return found[::-1]
