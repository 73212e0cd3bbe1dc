"""Variants for modules that no graph can hold: ``torch.compile`` with frozen weights, and plain storage.

The artefact has the weights, not the code: it is loaded into a module that the user builds. torch.compile follows what
Python does and breaks the graph where it has to, so any module works; it compiles anew in every process.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_perf.deploy.call import Call, FlatModule, frozen_copy
from lightning_perf.deploy.inductor import COMPILERS, torch_form
from lightning_perf.deploy.source import NotExportable, Source, quiet
from lightning_perf.deploy.tensors import load_tensors, save_tensors
from lightning_perf.deploy.variant import Run, Variant

NAME, STORED = "compile", "stored"
WEIGHTS = "weights.safetensors"


def build(source: Source, precision: str, folder: Path) -> list[Variant]:
    """Write ``compile-PRECISION/weights.safetensors`` below ``folder``; `torch.compile` runs when it is opened.

    Raises:
        NotExportable: no C++ compiler, bf16 without hardware, int8 without a prepared module.
    """
    if not any(shutil.which(name) for name in COMPILERS):
        raise NotExportable(f"torch.compile needs a C++ compiler and none of {list(COMPILERS)} is on the path")
    note = "needs the module's Python code, and compiles in every process that loads it"
    return [_written(NAME, source, precision, folder, note)]


def build_stored(source: Source, precision: str, folder: Path) -> list[Variant]:
    """Write ``stored-PRECISION/weights.safetensors``: a smaller file and nothing else; it runs as eager code.

    Raises:
        NotExportable: bf16 without hardware, int8 without a prepared module.
    """
    note = "a smaller file only: it needs the module's Python code and runs as eager code, with no claim of speed"
    return [_written(STORED, source, precision, folder, note)]


def _written(runtime: str, source: Source, precision: str, folder: Path, note: str) -> Variant:
    form = torch_form(source, precision)
    name = f"{runtime}-{precision}"
    (folder / name).mkdir()
    path = f"{name}/{WEIGHTS}"
    save_tensors(_tensors(bare(form)), folder / path)
    run = partial(_open, runtime, form, source.call)
    return Variant(name, runtime, precision, path, (path,), run, {"torch": torch.__version__}, (note,))


def _open(runtime: str, form: nn.Module, call: Call, threads: int | None) -> Run:
    return open_form(runtime, frozen_copy(form), call)


def bare(form: nn.Module) -> nn.Module:
    """The module inside of a wrapper of ours."""
    return getattr(form, "wrapped", form)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}


def restore(form: nn.Module, path: Path) -> nn.Module:
    """Load the weights of an artefact into a module of the same structure, strictly.

    What ``get_extra_state`` returns, other than a tensor, is no weight: it stays that of ``form``.

    Raises:
        ValueError: other names or shapes.
    """
    module = bare(form)
    own, tensors = module.state_dict(), _tensors(module)
    extra = {name: value for name, value in own.items() if name not in tensors}
    try:
        module.load_state_dict({**extra, **load_tensors(path)}, strict=True)
    except RuntimeError as error:
        raise ValueError(f"the module given does not fit the weights in {path}: {error}") from error
    return form


def open_form(runtime: str, form: nn.Module, call: Call) -> Run:
    """A function on flat tensors: compiled with frozen weights, or eager. ``form`` is taken over: pass a copy."""
    flat = FlatModule(form, call).eval()
    if runtime == STORED:
        return lambda tensors: list(flat(*tensors))
    compiled = torch.compile(flat, dynamic=any(call.batched))

    def run(tensors: Sequence[Tensor]) -> list[Tensor]:
        with torch.no_grad(), frozen():
            return [tensor.clone() for tensor in compiled(*tensors)]

    return run


@contextlib.contextmanager
def frozen() -> Iterator[None]:
    """Inductor's freezing, which its int8 kernels need, for the block."""
    import torch._inductor.config as inductor

    with quiet(), inductor.patch(freezing=True):
        yield
