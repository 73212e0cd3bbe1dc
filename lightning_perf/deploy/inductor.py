"""Variants for torch itself, compiled ahead of time: AOTInductor packages, loaded without Python code of the module."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_perf.deploy.call import first_line
from lightning_perf.deploy.source import BF16, INT8, NotExportable, Source, exported_program, quiet
from lightning_perf.deploy.variant import Run, Variant
from lightning_perf.hardware import bfloat16_is_native

NAME = "inductor"
COMPILERS = ("c++", "g++", "clang++", "cl")
# Weights are folded and packed at build time; the number of threads is read at run time, not at build time.
CONFIG: dict[str, Any] = {"freezing": True, "cpp.dynamic_threads": True}


def build(source: Source, precision: str, folder: Path) -> list[Variant]:
    """Write ``inductor-PRECISION/model.pt2`` below ``folder``; takes minutes for a large module.

    Raises:
        NotExportable: no C++ compiler, bf16 without hardware, int8 of a module that was not prepared, or a graph that
            Inductor refuses.
    """
    if not any(shutil.which(name) for name in COMPILERS):
        raise NotExportable(f"a C++ compiler is needed and none of {list(COMPILERS)} is on the path")
    program = without_checks(exported_program(torch_form(source, precision), source.call))
    name = f"{NAME}-{precision}"
    (folder / name).mkdir()
    path = folder / name / "model.pt2"
    try:
        with quiet(), torch.no_grad():
            torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=CONFIG)
    except Exception as error:
        shutil.rmtree(folder / name)
        raise NotExportable(f"Inductor refuses the graph ({first_line(error)})") from error
    relative = f"{name}/model.pt2"
    options = {"torch": torch.__version__}

    def open_on(threads: int | None) -> Run:
        return open_inductor(path)

    return [Variant(name, NAME, precision, relative, (relative,), open_on, options)]


def without_checks(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Take casts that cast nothing, and the checks beside them, out of a graph, in place.

    They are second readers of dequantized tensors, and Inductor's int8 patterns want a convolution to be the only one: with
    them every layer stays in float.
    """
    aten = torch.ops.aten
    for node in list(program.graph.nodes):
        if node.target is aten._assert_tensor_metadata.default:
            program.graph.erase_node(node)
        elif node.target is aten.to.dtype and node.args[0].meta["val"].dtype == node.args[1]:
            node.replace_all_uses_with(node.args[0])
            program.graph.erase_node(node)
    program.graph_module.recompile()
    return program


def torch_form(source: Source, precision: str) -> nn.Module:
    """The module that torch compiles for a precision.

    Raises:
        NotExportable: bf16 without hardware, int8 without a prepared module.
    """
    if precision == BF16:
        if not bfloat16_is_native():
            raise NotExportable("this processor has no bfloat16 arithmetic; bf16 would be slower than fp32")
        return Autocast(source.plain)
    if precision != INT8:
        return source.plain
    if source.integer is None:
        raise NotExportable(
            "torch has no int8 form of a module that was not prepared; use lightning_perf.quantize first"
        )
    return source.integer


class Autocast(nn.Module):
    """A module whose calls, of ``forward`` and of any other method, run under bfloat16 autocast and return float32."""

    def __init__(self, wrapped: nn.Module) -> None:
        super().__init__()
        self.wrapped = wrapped

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own call under autocast."""
        with torch.autocast("cpu", torch.bfloat16):
            return widened(self.wrapped(*args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "wrapped":
                raise
            method = getattr(self.wrapped, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            with torch.autocast("cpu", torch.bfloat16):
                return widened(method(*args, **kwargs))

        return call


def widened(value: Any) -> Any:
    """The same structure with bfloat16 tensors as float32."""
    if isinstance(value, Tensor):
        return value.float() if value.dtype is torch.bfloat16 else value
    if isinstance(value, dict):
        return {key: widened(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [widened(item) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return value


def open_inductor(path: Path) -> Run:
    """A package as a function on flat tensors; it runs on as many threads as torch has at the call."""
    with quiet():
        package = torch._inductor.aoti_load_package(str(path))

    def run(tensors: Sequence[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            found = package(*tensors)
        return list(found) if isinstance(found, list | tuple) else [found]

    return run
