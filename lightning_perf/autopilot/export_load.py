"""Open an artefact, with the user's module where the artefact has only weights or parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from lightning_perf.deploy import compiled, parts, serve
from lightning_perf.deploy.call import frozen_copy
from lightning_perf.deploy.inductor import Autocast
from lightning_perf.deploy.load import LoadedArtifact, call_of, open_artifact
from lightning_perf.deploy.source import BF16, INT8
from lightning_perf.quantization.convert import to_qdq
from lightning_perf.quantization.prepare import preparation, unprepare


def load_artifact(
    path: str | Path, variant: str | None = None, *, threads: int | None = None, module: nn.Module | None = None
) -> LoadedArtifact:
    """Open what `export` wrote, as a function with the module's input signature; arrays or tensors in, the same out.

    Every file is checked against the checksums of the manifest first. A folder whose variants run in ONNX Runtime or
    OpenVINO can also be opened without torch: ``serve.py`` lies in it.

    Args:
        path: the folder.
        variant: such as ``"onnxruntime-int8"``; default: the fastest that passed its checks for one sample.
        threads: threads within one call; default: all cores. What torch runs itself has as many as torch.
        module: for the variants ``parts``, ``compile`` and ``stored``, which hold no code: a module of the class that was
            exported. It is not changed. In int8, ``compile`` and ``stored`` want it prepared as it was at export.

    Raises:
        ArtifactError: the folder is damaged, truncated, changed, or of another version; no such variant; no module given.
        ValueError: a module that does not fit.
        ImportError: the variant's runtime is not installed.

    Example::

        >>> import lightning_perf as lp, torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 2))
        >>> made = lp.export(net, torch.randn(8, 4), "tiny.lpx", runtimes="onnxruntime", precisions=["fp32"], rounds=0)
        >>> lp.load_artifact("tiny.lpx")(torch.zeros(1, 4)).shape
        torch.Size([1, 2])
    """
    manifest = serve.read_manifest(path)
    name = variant if variant is not None else next(iter(manifest["ranking"]), None)
    entry = manifest["variants"].get(name, {"runtime": None})
    if name is None or module is None or entry["runtime"] not in (parts.NAME, compiled.NAME, compiled.STORED):
        return open_artifact(path, variant, threads=threads)
    file = Path(path, entry["path"])
    call = call_of(manifest)
    if entry["runtime"] == parts.NAME:
        plain = unprepare(frozen_copy(module))
        return LoadedArtifact(manifest, name, parts.open_parts(plain, call, file.parent, threads), any_size=True)
    form = compiled.restore(_form(module, entry["precision"]), file)
    return LoadedArtifact(manifest, name, compiled.open_form(entry["runtime"], form, call), any_size=True)


def _form(module: nn.Module, precision: str) -> Any:
    """The module as the weights of a precision need it."""
    if precision != INT8:
        plain = unprepare(frozen_copy(module))
        return Autocast(plain) if precision == BF16 else plain
    if preparation(module) is None:
        raise ValueError(
            f"int8 weights need a prepared module and this {type(module).__name__} is not: fit or load it with "
            "QuantizationAwareTraining, or pass it to lightning_perf.quantize."
        )
    return to_qdq(frozen_copy(module))
