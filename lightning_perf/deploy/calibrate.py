"""Ranges of all computed tensors of an ONNX graph, seen while ONNX Runtime runs the user's inputs through it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from lightning_perf._optional import require
from lightning_perf.deploy.onnx_graph import onnx


def observe(model: Any, inputs: Iterable[Mapping[str, np.ndarray]]) -> dict[str, tuple[float, float]]:
    """Smallest and largest value of every float tensor of ``model`` over all ``inputs``.

    Raises:
        ImportError: ONNX Runtime is not installed.
        ValueError: no inputs.
    """
    runtime = require("onnxruntime", extra="deploy", purpose="calibrating an int8 export")
    watched = onnx().ModelProto()
    watched.CopyFrom(model)
    known = {item.name for item in watched.graph.output}
    made = [name for node in watched.graph.node for name in node.output if name and name not in known]
    watched.graph.output.extend(onnx().ValueInfoProto(name=name) for name in made)
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = runtime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_outputs()]
    found: dict[str, tuple[float, float]] = {}
    count = 0
    for feed in inputs:
        count += 1
        values = dict(zip(names, session.run(None, dict(feed)), strict=True)) | dict(feed)
        for name, value in values.items():
            if isinstance(value, np.ndarray) and value.dtype == np.float32 and value.size:  # and no sequence
                low, high = found.get(name, (np.inf, -np.inf))
                found[name] = (min(low, float(value.min())), max(high, float(value.max())))
    if not count:
        raise ValueError("no inputs to calibrate on; pass at least one batch.")
    return found
