"""Serve an exported model. Needs numpy and one runtime; neither torch nor lightning_perf.

A copy of this file lies in every artefact folder:

    import sys, numpy as np
    sys.path.insert(0, "model.lpx")
    from serve import load
    model = load("model.lpx")
    print(model(np.zeros((1, 3, 64, 64), np.float32)))
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Any

import numpy as np

FORMAT = 1
MANIFEST = "manifest.json"
SERVED_HERE = ("onnxruntime", "openvino")
_COPIED = 1 << 16  # bytes of an input up to which a copy is cheaper than binding
_EXTRA = "pip install 'lightning-perf[deploy]'"


class ArtifactError(ValueError):
    """An artefact folder that is damaged, incomplete, of another version, or asked for what it does not hold."""


def load(folder: str | Path, variant: str | None = None, *, threads: int | None = None) -> Served:
    """Open an artefact.

    Args:
        folder: what ``lightning_perf.export`` wrote.
        variant: such as ``"onnxruntime-int8"``; default: the fastest that passed for one sample, among those whose
            runtime is installed here.
        threads: threads within one call; default: all cores.

    Raises:
        ArtifactError: the folder is damaged, a variant is unknown, none can run here.
        ImportError: the runtime of the named variant is not installed.
    """
    manifest = read_manifest(folder)
    name = variant or _choose(manifest)
    if name not in manifest["variants"]:
        raise ArtifactError(f"{folder} has no variant {name!r}; it has {sorted(manifest['variants'])}.")
    entry = manifest["variants"][name]
    if entry["runtime"] not in SERVED_HERE:
        raise ArtifactError(
            f"variant {name!r} runs in torch ({entry['runtime']}); open it with lightning_perf.load_artifact, or name one "
            f"of {[key for key, item in manifest['variants'].items() if item['runtime'] in SERVED_HERE]} here."
        )
    path = Path(folder, entry["path"])
    return Served(manifest, name, open_file(entry["runtime"], path, entry["options"], threads))


class Served:
    """A model with the call signature of the module it was exported from, on numpy arrays."""

    def __init__(self, manifest: dict[str, Any], variant: str, run: Callable[..., Any]) -> None:
        self.manifest, self.variant, self.run = manifest, variant, run
        self.binder = Binder(manifest["signature"])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model; the outputs have the structure of the module's."""
        arrays = [_as_array(value) for value in self.binder.leaves(args, kwargs)]
        self.binder.check(arrays)
        return rebuild(self.binder.outputs, self.run(arrays))


class Pool:
    """Several sessions, each in a thread of its own that is pinned to its cores: more throughput than one wide session.

    Args:
        folder: the artefact.
        cores: one group of core numbers per session, such as ``[[0], [1]]``.
        variant: as for :func:`load`.

    Raises:
        ArtifactError: as :func:`load`; no group, or a group without cores.
    """

    def __init__(self, folder: str | Path, cores: Sequence[Sequence[int]], variant: str | None = None) -> None:
        if not cores or not all(cores):
            raise ArtifactError(f"cores={cores!r} must name at least one core for every session, such as [[0], [1]].")
        self._workers = [
            ThreadPoolExecutor(1, initializer=_pin, initargs=(frozenset(group),), thread_name_prefix="serve")
            for group in cores
        ]
        opened = [
            worker.submit(load, folder, variant, threads=len(group))
            for worker, group in zip(self._workers, cores, strict=True)
        ]
        self._models = [future.result() for future in opened]
        self._next = 0

    def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
        """Queue one call at the next session in turn."""
        index = self._next
        self._next = (index + 1) % len(self._workers)
        return self._workers[index].submit(self._models[index], *args, **kwargs)

    def map(self, batches: Iterable[Any]) -> list[Any]:
        """Run every batch (the first argument of a call), spread over the sessions; results in order."""
        return [future.result() for future in [self.submit(batch) for batch in batches]]

    def close(self) -> None:
        """End the threads."""
        for worker in self._workers:
            worker.shutdown()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _pin(cores: frozenset[int]) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)  # 0: the calling thread; threads that the runtime starts inherit it


# --- runtimes ---------------------------------------------------------------------------------------------------------


def open_file(runtime: str, path: Path, options: dict[str, Any], threads: int | None = None) -> Callable[..., Any]:
    """A function from a list of arrays to a list of arrays.

    Raises:
        ImportError: the runtime is not installed.
    """
    return {"onnxruntime": open_onnxruntime, "openvino": open_openvino}[runtime](path, options, threads)


def open_onnxruntime(path: Path, options: dict[str, Any], threads: int | None = None) -> Callable[..., Any]:
    """A session of ONNX Runtime on the CPU.

    Processors without VNNI add two products of bytes in 16 bits, which overflow: there, weights are read as uint8, for which
    ONNX Runtime has exact kernels, slower ones. With VNNI the setting does nothing.
    """
    ort = _runtime("onnxruntime")
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = threads or _cores()
    for key, value in {"session.x64quantprecision": 1, **options}.items():
        settings.add_session_config_entry(key, str(value))
    session = ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    inputs = [item.name for item in session.get_inputs()]
    outputs = [item.name for item in session.get_outputs()]

    def run(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        return session.run(outputs, dict(zip(inputs, arrays, strict=True)))

    return run


def open_openvino(path: Path, options: dict[str, Any], threads: int | None = None) -> Callable[..., Any]:
    """A compiled model of OpenVINO on the CPU, one stream.

    OpenVINO would pin the threads of every model to the first cores, so that several sessions shared one; they stay where
    the thread that opens the model may run.
    """
    settings = {"INFERENCE_NUM_THREADS": threads or _cores(), "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False, **options}
    openvino = _runtime("openvino")
    return _OpenVINORun(openvino, _core_of(openvino).compile_model(str(path), "CPU", settings).create_infer_request())


class _OpenVINORun:
    """Calls of one request. Small inputs are copied into tensors that stay bound, since binding costs 25 us and more."""

    def __init__(self, openvino: Any, request: Any) -> None:
        self._tensor, self._request, self._lock = openvino.Tensor, request, Lock()
        self._bound: list[np.ndarray | None] = [None] * len(request.model_inputs)
        self._shared: list[np.ndarray | None] = [None] * len(request.model_inputs)  # keeps their memory alive
        self._outputs = [request.get_output_tensor(index) for index in range(len(request.model_outputs))]

    def __call__(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Arrays in, copies of the outputs out; one call at a time."""
        with self._lock:
            return self._run(arrays)

    def _run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        for index, array in enumerate(arrays):
            bound = self._bound[index]
            if bound is None or bound.shape != array.shape or bound.dtype != array.dtype:
                small = array.nbytes <= _COPIED
                copied = small or not array.flags.writeable  # a tensor of OpenVINO's cannot share what is read-only
                source = np.array(array, order="C") if copied else np.ascontiguousarray(array)
                self._request.set_input_tensor(index, self._tensor(source, shared_memory=True))
                self._shared[index], self._bound[index] = source, source if small else None
            else:
                np.copyto(bound, array)
        self._request.infer()
        return [np.array(tensor.data) for tensor in self._outputs]


@cache
def _core_of(openvino: Any) -> Any:
    """One core for the life of the process, for the signals' sake.

    OpenVINO 2026.4 gives the calling thread a stack for signal handlers and puts the one before back when its core goes:
    of several cores, one leaves behind a stack that is freed, and the next signal, such as the end of a DataLoader's
    worker, ends the process (SIGSEGV).
    """
    return openvino.Core()


def _runtime(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ImportError(f"{name} is not installed; this variant runs in it: {_EXTRA}", name=name) from error


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# --- the manifest -----------------------------------------------------------------------------------------------------


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of a folder, after every file it names was found whole.

    Raises:
        ArtifactError: what is wrong, and with which file.
    """
    root = Path(folder)
    path = root / MANIFEST
    if not path.is_file():
        raise ArtifactError(f"{folder} is no artefact: it has no {MANIFEST}. Give the folder that export() wrote.")
    try:
        manifest = json.loads(path.read_bytes())
        version, said = manifest["format"], manifest["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} is damaged ({error!r}); export again or copy it again.") from error
    if version != FORMAT:
        raise ArtifactError(f"{path} is of format {version!r} and this loader reads {FORMAT}; export again.")
    if said != manifest_digest(manifest):
        raise ArtifactError(f"{path} is damaged or was changed: its checksum does not match. Copy or export it again.")
    for name, facts in manifest["files"].items():
        check_file(root, name, facts)
    for name, entry in manifest["variants"].items():
        if entry["path"] not in manifest["files"]:
            raise ArtifactError(f"{path}: variant {name!r} names {entry['path']!r}, which is not among its files.")
    return manifest


def check_file(root: Path, name: str, facts: dict[str, Any]) -> None:
    """One file of an artefact is inside of the folder, has its size, and its checksum.

    Raises:
        ArtifactError: it is not so.
    """
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name:
        raise ArtifactError(f"{root / MANIFEST} names {name!r}, which lies outside of the folder; refused.")
    path = root / pure
    if not path.is_file():
        raise ArtifactError(f"{path} is missing; copy the whole folder.")
    if not path.resolve().is_relative_to(root.resolve()):
        raise ArtifactError(f"{path} is a link that leads out of the folder; refused.")
    if path.stat().st_size != facts["bytes"]:
        raise ArtifactError(f"{path} has {path.stat().st_size} bytes instead of {facts['bytes']}; it is truncated.")
    if file_digest(path) != facts["sha256"]:
        raise ArtifactError(f"{path} is damaged or was changed: its checksum does not match. Copy or export it again.")


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def manifest_digest(manifest: dict[str, Any]) -> str:
    """SHA-256 of a manifest without its own ``sha256``."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _choose(manifest: dict[str, Any]) -> str:
    here = {
        name
        for name, entry in manifest["variants"].items()
        if entry["runtime"] in SERVED_HERE and importlib.util.find_spec(entry["runtime"]) is not None
    }
    for name in manifest["ranking"]:
        if name in here:
            return name
    raise ArtifactError(
        f"no variant that passed its checks can run here: passed are {manifest['ranking']}, and of the runtimes of "
        f"{sorted(manifest['variants'])} those that are installed serve {sorted(here)}. {_EXTRA}"
    )


# --- calls ------------------------------------------------------------------------------------------------------------


class Binder:
    """Turns a call as the module took it into a flat list of tensors, and checks them.

    The signature is plain data: ``parameters`` (name, kind), ``inputs`` (one structure per parameter), ``tensors`` (name,
    dtype and shape of each leaf; a word in a shape is a size that may vary, the same word the same size) and ``outputs``.
    """

    def __init__(self, signature: dict[str, Any], dtype: Callable[[str], Any] = np.dtype) -> None:
        self.outputs = signature["outputs"]
        self.inputs = signature["inputs"]
        self._checked: list[Any] | None = None
        self.names = [item["name"] for item in signature["tensors"]]
        self.wanted = [(dtype(item["dtype"]), tuple(item["shape"])) for item in signature["tensors"]]
        self.signature = inspect.Signature(
            [
                inspect.Parameter(item["name"], getattr(inspect.Parameter, item["kind"]))
                for item in signature["parameters"]
            ]
        )
        # Positional tensors in order need no binding, which would cost a tenth of a small model's time.
        kinds = {item["kind"] for item in signature["parameters"]} <= {"POSITIONAL_ONLY", "POSITIONAL_OR_KEYWORD"}
        self.plain = kinds and list(self.inputs.values()) == [{"tensor": index} for index in range(len(self.wanted))]

    def leaves(self, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
        """The tensors of one call.

        Raises:
            TypeError: arguments that the exported call did not have.
            ArtifactError: another structure, or another value of what was fixed at export.
        """
        if self.plain and not kwargs and len(args) == len(self.wanted):
            return list(args)
        bound = self.signature.bind(*args, **kwargs).arguments
        found: list[Any] = [None] * len(self.wanted)
        for name, spec in self.inputs.items():
            gather(spec, bound[name], found, name)
        return found

    def check(self, tensors: Sequence[Any]) -> None:
        """Dtypes and shapes against the signature; those of the last call that fitted need no second look.

        Raises:
            ArtifactError: the first tensor that does not fit.
        """
        seen = [(tensor.dtype, tensor.shape) for tensor in tensors]
        if seen == self._checked:
            return
        sizes: dict[str, int] = {}
        for name, (dtype, wanted), tensor in zip(self.names, self.wanted, tensors, strict=True):
            if tensor.dtype != dtype:
                raise ArtifactError(f"input {name!r} is {_word(tensor.dtype)} and must be {_word(dtype)}; convert it.")
            shape = tuple(tensor.shape)
            fits = len(shape) == len(wanted) and all(
                size == sizes.setdefault(want, size) if isinstance(want, str) else size == want
                for size, want in zip(shape, wanted, strict=True)
            )
            if not fits:
                raise ArtifactError(f"input {name!r} has shape {shape} and must have {list(wanted)}.")
        self._checked = seen


def _word(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def gather(spec: Any, value: Any, found: list[Any], where: str) -> None:
    """Put the tensors of ``value`` at the places that its structure ``spec`` gives them.

    Raises:
        ArtifactError: the structure differs.
    """
    kind, content = next(iter(spec.items()))
    if kind == "tensor":
        found[content] = value
    elif kind == "const":
        if isinstance(value, np.ndarray) or value != content:
            raise ArtifactError(f"{where} was {content!r} when the model was exported and is fixed; got {value!r}.")
    elif kind in {"dict", "object"}:
        if kind == "object" and not isinstance(value, Mapping):
            value = {key: getattr(value, key) for key in content if hasattr(value, key)}
        if set(value) != set(content):
            raise ArtifactError(f"{where} must have the keys {sorted(content)}, got {sorted(value)}.")
        for key, inner in content.items():
            gather(inner, value[key], found, f"{where}[{key!r}]")
    else:
        if len(value) != len(content):
            raise ArtifactError(f"{where} must have {len(content)} items, got {len(value)}.")
        for index, inner in enumerate(_specs(kind, content)):
            gather(inner, value[index], found, f"{where}[{index}]")


def rebuild(spec: Any, leaves: Sequence[Any]) -> Any:
    """A value of the structure ``spec`` from its tensors.

    Example::

        >>> rebuild({"dict": {"a": {"tensor": 1}, "b": {"tuple": [{"tensor": 0}, {"const": None}]}}}, [10, 20])
        {'a': 20, 'b': (10, None)}
    """
    kind, content = next(iter(spec.items()))
    if kind == "tensor":
        return leaves[content]
    if kind == "const":
        return content
    if kind in {"dict", "object"}:
        return {key: rebuild(inner, leaves) for key, inner in content.items()}
    items = [rebuild(inner, leaves) for inner in _specs(kind, content)]
    return items if kind == "list" else tuple(items)


def _specs(kind: str, content: Any) -> list[Any]:
    """The structures in a list, a tuple, or a named tuple, which has pairs of a name and a structure."""
    return [inner for _, inner in content] if kind == "named" else content


def _as_array(value: Any) -> np.ndarray:
    return np.ascontiguousarray(value) if np.ndim(value) else np.asarray(value)
