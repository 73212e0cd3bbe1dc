"""The module as an ONNX graph: float, or with Q/DQ where a runtime folds them."""

from __future__ import annotations

from typing import Any

import torch

from lightning_perf._optional import require
from lightning_perf.deploy.calibrate import observe
from lightning_perf.deploy.call import BATCH, Call, first_line
from lightning_perf.deploy.onnx_constants import compute_weights
from lightning_perf.deploy.onnx_graph import OnnxGraph, pool_means
from lightning_perf.deploy.quantized_graph import LAYERS, Plan, quantize_graph
from lightning_perf.deploy.shortcuts import convolve_shortcuts
from lightning_perf.deploy.source import INT8, NotExportable, Source, exported_program, quiet


def float_graph(source: Source, precision: str) -> Any:
    """The float ONNX model for a precision; batch norms are folded by the exporter.

    Raises:
        ImportError: onnx or onnxscript is missing.
        NotExportable: the module cannot be traced, or an operator has no ONNX form.
    """
    require("onnxscript", extra="deploy", purpose="exporting to ONNX Runtime and OpenVINO")
    call = source.call
    program = exported_program(source.float_form(precision), call)
    _check_numbers(program, call)
    try:
        with quiet():
            program = _without_projections(program)
            made = torch.onnx.export(
                program,
                (),
                dynamo=True,
                input_names=list(call.names),
                output_names=[f"output_{index}" for index in range(call.output_count)],
                verbose=False,
            )
    except Exception as error:
        cause: BaseException = error  # what the exporter raises last tells of its own steps alone
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise NotExportable(f"no ONNX form ({first_line(cause)})") from error
    assert made is not None
    return _whole_proto(made.model_proto)


def _check_numbers(program: torch.export.ExportedProgram, call: Call) -> None:
    """Refuse numbers at the ends of a graph that the runtimes or numpy do not know."""
    ends = [node.meta.get("val") for node in program.graph.output_node().all_input_nodes]
    found = {tensor.dtype for tensor in (*call.tensors, *ends) if isinstance(tensor, torch.Tensor)}
    if any(dtype.is_complex for dtype in found):
        raise NotExportable("it takes or returns complex numbers, which ONNX has not; use torch.view_as_real there")
    if torch.bfloat16 in found:
        raise NotExportable(
            "it takes or returns bfloat16, which arrays of numpy cannot hold; export module.float() on float32 inputs"
        )


def _without_projections(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """LSTMs with ``proj_size``, which ONNX does not have, written out as products; without one the program itself."""
    lstm = torch.ops.aten.lstm.input
    if not any(node.target is lstm and _projects(node) for node in program.graph.nodes):
        return program
    return program.run_decompositions({lstm: torch.export.default_decompositions()[lstm]})


def _projects(node: Any) -> bool:
    _, _, weights, biases, layers, _, _, bidirectional, *_ = node.args
    return len(weights) // (layers * (1 + bidirectional)) == (5 if biases else 3)


def _whole_proto(model: Any) -> Any:
    """Names for every node, so that they can be told apart, and the batch by its name."""
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"node_{index}"
    assert len({node.name for node in model.graph.node}) == len(model.graph.node)
    for item in (*model.graph.input, *model.graph.output):
        for dimension in item.type.tensor_type.shape.dim:
            if dimension.dim_param:
                dimension.dim_param = BATCH
    return model


def integer_graph(source: Source, model: Any, *, fused_sum: bool) -> Plan:
    """Insert Q/DQ into a float graph in place.

    Raises:
        ValueError: nothing can be quantized, a range is not finite, no calibration inputs.
    """
    graph = OnnxGraph(model)
    compute_weights(graph, LAYERS)
    shortcuts = convolve_shortcuts(graph)
    pool_means(graph)
    names = source.call.names
    feeds = [{name: tensor.numpy() for name, tensor in zip(names, batch, strict=True)} for batch in source.calibration]
    return quantize_graph(graph, observe(model, feeds), source.ranges, fused_sum=fused_sum, shortcuts=shortcuts)


def graph_for(source: Source, precision: str, *, fused_sum: bool = False) -> tuple[Any, tuple[str, ...]]:
    """The ONNX model of a precision, and what has to be said about it."""
    model = float_graph(source, precision)
    if precision != INT8:
        return model, ()
    plan = integer_graph(source, model, fused_sum=fused_sum)
    return model, tuple(f"{name} left in float: {reason}" for name, reason in plan.left.items())
