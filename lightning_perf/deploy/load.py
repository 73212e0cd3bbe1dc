"""Open an artefact in a process that has torch: tensors or arrays in, the same kind out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_perf.deploy import inductor, onnx_runtime, openvino, serve
from lightning_perf.deploy.call import Call
from lightning_perf.deploy.onnx_runtime import opener
from lightning_perf.deploy.variant import Run


def open_artifact(path: str | Path, variant: str | None = None, *, threads: int | None = None) -> LoadedArtifact:
    """Open a variant that needs no code of the module, as a function with the module's input signature.

    Args:
        path: the folder.
        variant: such as ``"onnxruntime-int8"``; default: the fastest that passed its checks for one sample.
        threads: threads within one call; default: all cores. AOTInductor runs on as many as torch has.

    Raises:
        ArtifactError: the folder is damaged, truncated, changed, or of another version; no such variant.
        ImportError: the variant's runtime is not installed.

    Example::

        >>> open_artifact("nowhere")
        Traceback (most recent call last):
        ...
        lightning_perf.deploy.serve.ArtifactError: nowhere is no artefact: it has no manifest.json. Give the folder ...
    """
    manifest = serve.read_manifest(path)
    name = variant if variant is not None else next(iter(manifest["ranking"]), None)
    if name is None:
        raise serve.ArtifactError(
            f"no variant of {path} passed its checks; name one of {sorted(manifest['variants'])}."
        )
    if name not in manifest["variants"]:
        raise serve.ArtifactError(f"{path} has no variant {name!r}; it has {sorted(manifest['variants'])}.")
    entry = manifest["variants"][name]
    if entry["runtime"] not in _OPENERS:
        raise serve.ArtifactError(
            f"variant {name!r} ({'; '.join(entry['notes'])}): use lightning_perf.load_artifact(path, module=your_module)."
        )
    return LoadedArtifact(
        manifest, name, _OPENERS[entry["runtime"]](Path(path, entry["path"]), entry["options"], threads)
    )


def call_of(manifest: Mapping[str, Any]) -> Call:
    """The call of a manifest, with empty tensors in the place of the example's."""
    told = manifest["signature"]
    tensors = tuple(
        torch.empty(
            [1 if isinstance(size, str) else size for size in item["shape"]], dtype=getattr(torch, item["dtype"])
        )
        for item in told["tensors"]
    )
    return Call(
        told["method"],
        tuple((item["name"], item["kind"]) for item in told["parameters"]),
        told["inputs"],
        tensors,
        tuple(item["name"] for item in told["tensors"]),
        told["outputs"],
        0,
        tuple(any(isinstance(size, str) for size in item["shape"]) for item in told["tensors"]),
    )


class LoadedArtifact:
    """A variant under the signature of the module that it was exported from.

    ``any_size``: what runs is the module's own code, which takes other sizes than those of the example.
    """

    def __init__(self, manifest: Mapping[str, Any], variant: str, run: Run, *, any_size: bool = False) -> None:
        self.manifest, self.variant, self._run, self._any_size = manifest, variant, run, any_size
        self._binder = serve.Binder(dict(manifest["signature"]), lambda name: getattr(torch, name))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the variant; arrays come back where no tensor went in."""
        as_tensors, tensors = False, []
        for value in self._binder.leaves(args, kwargs):
            as_tensors = as_tensors or isinstance(value, Tensor)
            tensors.append(_on_cpu(value))
        if not self._any_size:
            self._binder.check(tensors)
        found = self._run(tensors)
        return serve.rebuild(self._binder.outputs, found if as_tensors else [tensor.numpy() for tensor in found])

    def __repr__(self) -> str:
        return f"LoadedArtifact({self.variant!r})"


def _on_cpu(value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        return torch.as_tensor(value)
    return value if value.is_cpu and not value.requires_grad else value.detach().cpu()


def _open_inductor(path: Path, options: Mapping[str, Any], threads: int | None) -> Run:
    if options["torch"] != torch.__version__:
        raise serve.ArtifactError(
            f"{path} was compiled by torch {options['torch']} and this is {torch.__version__}; its code fits that version "
            "only. Export again, or load another variant."
        )
    return inductor.open_inductor(path)


def _open_on_arrays(open_file: Callable[..., Any]) -> Callable[..., Run]:
    return lambda path, options, threads: opener(open_file, path, options)(threads)


_OPENERS: dict[str, Callable[..., Run]] = {
    onnx_runtime.NAME: _open_on_arrays(serve.open_onnxruntime),
    openvino.NAME: _open_on_arrays(serve.open_openvino),
    inductor.NAME: _open_inductor,
}
