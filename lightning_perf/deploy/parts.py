"""Where the whole module cannot be exported: the largest parts of it that can, each an artefact of its own.

The rest stays Python: data-dependent control flow, calls of libraries. Parts are children that run exactly once per call; a
child that cannot be exported is looked into.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_perf._copying import deep_copy
from lightning_perf.deploy.call import Call, FlatModule, copies, describe_call, first_line, frozen_copy
from lightning_perf.deploy.load import open_artifact
from lightning_perf.deploy.source import NotExportable, Source, exported_program
from lightning_perf.deploy.structures import NotPlain, take_apart
from lightning_perf.deploy.variant import Run, Variant

NAME = "parts"
INDEX = "parts.json"

WriteChild = Callable[[str, Call, Sequence[Sequence[Tensor]], str, Path], None]
"""Write the artefact of a child: qualified name, its call, calibration inputs, precision, folder."""


@dataclass(frozen=True)
class Part:
    """A child that can be exported: its name and its call, in one real run of the module."""

    name: str
    call: Call
    parameters: int


def find_parts(module: nn.Module, call: Call) -> tuple[list[Part], dict[str, str]]:
    """The largest exportable children, and why the others are none.

    Where the call's own size is fixed, as that of a batch of graphs is, each batch will have another one: children that
    take any size come before larger ones that do not.
    """
    seen = recorded_calls(module, call, call.tensors)
    refused: dict[str, str] = {}
    if not any(call.batched):
        found = list(_search(module, "", seen, refused, any_size=True))
        if found:
            return found, refused
        refused = {}
    return list(_search(module, "", seen, refused)), refused


def _search(
    module: nn.Module, prefix: str, seen: Mapping[str, list[Any]], refused: dict[str, str], *, any_size: bool = False
) -> Iterator[Part]:
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        count = sum(parameter.numel() for parameter in child.parameters())
        if not count:
            continue
        reason = None
        if len(seen.get(path, [])) == 1:
            args, kwargs = seen[path][0]
            try:
                own = describe_call(child, args, kwargs)
                if not any_size or any(own.batched):
                    exported_program(child, own)
                    yield Part(path, own, count)
                    continue
                reason = "; ".join(own.notes)
            except Exception as error:  # whatever a child's own code or an exporter raises
                reason = first_line(error)
        refused[path] = reason or f"it runs {len(seen.get(path, []))} times per call"
        yield from _search(child, f"{path}.", seen, refused, any_size=any_size)


def children_that_take_tensors(
    module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], method: str
) -> list[str]:
    """Names of the largest children that run once in a call of a module and take structures of tensors."""
    copied = frozen_copy(module)
    return list(_takers(copied, "", _recorded(copied, lambda: getattr(copied, method)(*args, **kwargs))))


def _takers(module: nn.Module, prefix: str, seen: Mapping[str, list[Any]]) -> Iterator[str]:
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        if next(child.parameters(), None) is None:
            continue
        calls, leaves = seen.get(path, []), []
        try:
            plain = len(calls) == 1 and bool(
                take_apart(calls[0][0], leaves, "") and take_apart(calls[0][1], leaves, "")
            )
        except NotPlain:
            plain = False
        if plain and leaves:
            yield path
        else:
            yield from _takers(child, f"{path}.", seen)


def recorded_calls(module: nn.Module, call: Call, tensors: Sequence[Tensor]) -> dict[str, list[Any]]:
    """Arguments of every call of every child, by the child's name, in one run."""
    return _recorded(module, lambda: FlatModule(module, call)(*copies(tensors)))


def _recorded(module: nn.Module, run: Callable[[], Any]) -> dict[str, list[Any]]:
    seen: dict[str, list[Any]] = {}
    with ExitStack() as stack:
        for name, child in module.named_modules():
            if name:
                hook = partial(_note, seen.setdefault(name, []))
                stack.callback(child.register_forward_pre_hook(hook, with_kwargs=True).remove)
        with torch.no_grad():
            run()
    return seen


def _note(calls: list[Any], module: nn.Module, args: Any, kwargs: Any) -> None:
    calls.append((args, kwargs))


def build(source: Source, precision: str, folder: Path, *, write_child: WriteChild) -> list[Variant]:
    """Write one artefact per part below ``parts-PRECISION``, and an index of them.

    Raises:
        NotExportable: no child can be exported either.
    """
    module = source.plain
    found, refused = find_parts(module, source.call)
    home = folder / f"{NAME}-{precision}"
    home.mkdir()
    runs = [recorded_calls(module, source.call, tensors) for tensors in source.calibration if found]
    parts = []
    for part in found:
        try:
            inputs = [part.call.leaves(*run[part.name][0]) for run in runs if len(run[part.name]) == 1]
            write_child(part.name, part.call, inputs, precision, home / part.name)
            parts.append(part)
        except Exception as error:  # one part that no runtime takes leaves the others
            refused[part.name] = first_line(error)
    if not parts:
        reasons = (
            "; ".join(f"{name}: {reason}" for name, reason in refused.items()) or "it has no children with parameters"
        )
        raise NotExportable(f"no part of {type(module).__name__} can be exported either ({reasons})")
    (home / INDEX).write_text(json.dumps([part.name for part in parts]), encoding="utf-8")
    total = sum(parameter.numel() for parameter in module.parameters()) or 1
    share = sum(part.parameters for part in parts) / total
    names = ", ".join(part.name for part in parts)
    note = f"{names} ({share:.0%} of the parameters) run in the runtime; the rest needs the module's Python code"
    files = tuple(path.relative_to(folder).as_posix() for path in sorted(home.rglob("*")) if path.is_file())
    path = f"{home.name}/{INDEX}"
    opened = partial(open_parts, module, source.call, home)
    return [Variant(home.name, NAME, precision, path, files, opened, {}, (note,))]


def open_parts(module: nn.Module, call: Call, home: Path, threads: int | None) -> Run:
    """The module with its parts in their runtimes, on flat tensors."""
    flat = FlatModule(assembled(module, home, threads), call)
    return lambda tensors: list(flat(*tensors))


def assembled(module: nn.Module, home: Path, threads: int | None) -> nn.Module:
    """A copy of the module in which every part of the folder stands for the child of its name.

    Raises:
        ValueError: the module has no child of that name.
    """
    made = deep_copy(module).eval()
    for name in json.loads((home / INDEX).read_text(encoding="utf-8")):
        parent, _, own = name.rpartition(".")
        try:
            replaced = made.get_submodule(name)
        except AttributeError as error:
            raise ValueError(f"the module given has no part {name!r}, which the artefact replaces.") from error
        setattr(made.get_submodule(parent), own, PartOfArtifact(home / name, threads, replaced))
    return made


class PartOfArtifact(nn.Module):
    """A child that runs in a runtime; attributes that the code around it reads are those of the child it stands for."""

    def __init__(self, path: Path, threads: int | None, replaced: nn.Module) -> None:
        super().__init__()
        self._model = open_artifact(path, threads=threads)
        self._replaced = [replaced]  # in a list, so that its parameters are not among this module's

    def __getattr__(self, name: str) -> Any:
        """What neither this module nor ``nn.Module`` has."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "_replaced" not in vars(self):
                raise
            return getattr(vars(self)["_replaced"][0], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The child's own call."""
        return self._model(*args, **kwargs)
