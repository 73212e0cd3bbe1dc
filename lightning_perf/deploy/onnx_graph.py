"""A small index over an ONNX graph: who makes a tensor, who reads it, which layer of the module a node came from."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lightning_perf._optional import require

_SCOPES = "pkg.torch.onnx.name_scopes"
_WEIGHT = ".weight"


def onnx() -> Any:
    """The ``onnx`` package.

    Raises:
        ImportError: it is not installed; the message names the extra.
    """
    return require("onnx", extra="deploy", purpose="exporting to ONNX Runtime and OpenVINO")


class OnnxGraph:
    """The graph of a model with its makers, readers and constants, kept in step while nodes are rewired."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.helper = onnx().helper
        self.constants = {item.name: item for item in model.graph.initializer}
        self.outputs = {item.name for item in model.graph.output}
        self.refresh()

    def refresh(self) -> None:
        """Look at all nodes anew."""
        self.nodes = list(self.model.graph.node)
        self.maker = {name: node for node in self.nodes for name in node.output}
        self.readers: dict[str, list[Any]] = defaultdict(list)
        for node in self.nodes:
            for name in names_read(node):
                self.readers[name].append(node)

    def array(self, name: str) -> np.ndarray:
        """The value of a constant."""
        return onnx().numpy_helper.to_array(self.constants[name])

    def set_constant(self, name: str, value: np.ndarray) -> str:
        """Store a constant under ``name``; returns the name."""
        made = onnx().numpy_helper.from_array(np.asarray(value, order="C"), name)
        if name in self.constants:
            self.constants[name].CopyFrom(made)
        else:
            self.model.graph.initializer.append(made)
            self.constants[name] = self.model.graph.initializer[-1]
        return name

    def only_reader(self, name: str) -> Any | None:
        """The one node that reads a tensor; None for several, or where the tensor leaves the graph."""
        readers = self.readers[name]
        return readers[0] if len(readers) == 1 and name not in self.outputs else None

    def activations(self, node: Any) -> Iterator[str]:
        """Inputs of a node that are computed, not constant."""
        return (name for name in node.input if name and name not in self.constants)

    def rewrite(self, nodes: list[Any]) -> None:
        """Replace all nodes, and drop the constants that nobody reads any more."""
        del self.model.graph.node[:]
        self.model.graph.node.extend(nodes)
        used = {name for node in nodes for name in names_read(node)} | self.outputs
        kept = [item for item in self.model.graph.initializer if item.name in used]
        del self.model.graph.initializer[:]
        self.model.graph.initializer.extend(kept)
        del self.model.graph.value_info[:]
        self.constants = {item.name: item for item in self.model.graph.initializer}
        self.refresh()


def names_read(node: Any) -> list[str]:
    """What a node reads, each name once: its inputs, and what the bodies of a loop or a branch take from outside."""
    found = dict.fromkeys(node.input)
    for item in node.attribute:
        for body in (item.g, *item.graphs) if item.HasField("g") else item.graphs:
            made = {one.name for one in (*body.input, *body.initializer)}
            made.update(name for inner in body.node for name in inner.output)
            inside = [name for inner in body.node for name in names_read(inner)]
            found.update(
                dict.fromkeys(name for name in (*inside, *(one.name for one in body.output)) if name not in made)
            )
    return list(found)


def attribute(node: Any, name: str, default: Any = None) -> Any:
    """An attribute of a node, or ``default``."""
    for item in node.attribute:
        if item.name == name:
            return onnx().helper.get_attribute_value(item)
    return default


def layer_of(node: Any) -> str | None:
    """Qualified name, in the user's module, of the layer whose weight or forward is in this node; None where nobody says.

    The weight's own name comes first: with a batch norm folded in, the exporter says that the norm made the node.
    """
    if len(node.input) > 1 and node.input[1].endswith(_WEIGHT):
        return _in_users_module(node.input[1].removesuffix(_WEIGHT))
    for item in node.metadata_props:
        if item.key == _SCOPES:
            scopes = ast.literal_eval(item.value)
            return _in_users_module(scopes[-2]) if len(scopes) > 1 else None
    return None


def label_of(node: Any) -> str:
    """What a node is called in a report: its layer, or its own name where nobody knows the layer."""
    layer = layer_of(node)
    return node.name if layer is None else layer


def _in_users_module(name: str) -> str:
    """A name below :class:`~lightning_perf.deploy.call.FlatModule`, which holds the user's module; its own is empty."""
    return "" if name == "module" else name.removeprefix("module.")


def save(model: Any, path: Path) -> None:
    """Write a model without the exporter's notes (stack traces, scopes), which weigh as much as a small network.

    Raises:
        ValueError: the model exceeds the 2 GiB that one ONNX file may have.
    """
    bare = onnx().ModelProto()
    bare.CopyFrom(model)
    for item in (bare, bare.graph, *bare.graph.node, *bare.graph.initializer, *bare.graph.input, *bare.graph.output):
        del item.metadata_props[:]
        item.doc_string = ""
    if bare.ByteSize() >= 2**31:
        raise ValueError(
            f"the ONNX model has {bare.ByteSize() / 2**30:.1f} GiB and one file may have 2; export with inductor."
        )
    path.write_bytes(bare.SerializeToString())


def pool_means(graph: OnnxGraph) -> None:
    """Write means over the image plane as pooling, which runtimes have integer kernels for."""
    ranks = {item.name: len(item.type.tensor_type.shape.dim) for item in graph.model.graph.value_info}
    nodes: list[Any] = []
    for node in graph.nodes:
        axes = [] if node.op_type != "ReduceMean" or len(node.input) < 2 else graph.constants.get(node.input[1], [])
        rank = ranks.get(node.input[0]) if node.input else None
        if rank == 4 and axes and sorted(int(axis) % rank for axis in graph.array(node.input[1])) == [2, 3]:
            pooled = f"{node.output[0]}_pooled" if not attribute(node, "keepdims", 1) else node.output[0]
            nodes.append(graph.helper.make_node("GlobalAveragePool", [node.input[0]], [pooled], f"{node.name}_pool"))
            if pooled != node.output[0]:
                nodes.append(graph.helper.make_node("Flatten", [pooled], [node.output[0]], f"{node.name}_flat", axis=1))
        else:
            nodes.append(node)
    graph.rewrite(nodes)
