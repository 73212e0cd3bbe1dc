"""Variants for ONNX Runtime on the CPU: fp32 and int8."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_perf._optional import require
from lightning_perf.deploy.onnx_export import graph_for
from lightning_perf.deploy.onnx_graph import save
from lightning_perf.deploy.serve import open_onnxruntime
from lightning_perf.deploy.source import BF16, NotExportable, Source
from lightning_perf.deploy.variant import Run, Variant

NAME = "onnxruntime"


def build(source: Source, precision: str, folder: Path) -> list[Variant]:
    """Write ``onnxruntime-PRECISION/model.onnx`` below ``folder``.

    Raises:
        ImportError: ONNX Runtime is missing.
        NotExportable: bf16, or a module that has no ONNX form.
    """
    require("onnxruntime", extra="deploy", purpose="exporting to ONNX Runtime")
    if precision == BF16:
        raise NotExportable("ONNX Runtime has no bfloat16 kernels for the CPU")
    model, notes = graph_for(source, precision)
    name = f"{NAME}-{precision}"
    (folder / name).mkdir()
    save(model, folder / name / "model.onnx")
    path = f"{name}/model.onnx"
    return [Variant(name, NAME, precision, path, (path,), opener(open_onnxruntime, folder / path, {}), {}, notes)]


def opener(open_file: Callable[..., Any], path: Path, options: Mapping[str, Any]) -> Callable[[int | None], Run]:
    """A variant's ``open`` for a runtime that works on numpy arrays."""

    def open_on(threads: int | None) -> Run:
        run = open_file(path, dict(options), threads)

        def on_tensors(tensors: Sequence[Tensor]) -> list[Tensor]:
            return [torch.from_numpy(array) for array in run([tensor.numpy() for tensor in tensors])]

        return on_tensors

    return open_on
