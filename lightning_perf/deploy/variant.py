"""One variant of an artefact: a runtime at a precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

Run: TypeAlias = Callable[[Sequence[Tensor]], list[Tensor]]


@dataclass(frozen=True)
class Variant:
    """What a runtime made of a module.

    ``path`` is relative to the artefact's folder, ``files`` are all files it needs, ``open`` gives a function on flat
    tensors for a number of threads (None: all), ``notes`` are what a reader has to know.
    """

    name: str
    runtime: str
    precision: str
    path: str
    files: tuple[str, ...]
    open: Callable[[int | None], Run]
    options: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def size(self, folder: Path) -> int:
        """Bytes of all its files."""
        return sum((folder / name).stat().st_size for name in self.files)
