"""The folder that an export writes: all of it, or nothing."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_perf.deploy import serve
from lightning_perf.report import Report

SERVE = "serve.py"
REPORT = "report.json"


@dataclass(frozen=True)
class Artifact:
    """An exported folder: where it is, what its manifest says, and how its variants measured.

    Example::

        >>> Artifact(Path("model.lpx"), {"ranking": ["onnxruntime-int8"]}).best
        'onnxruntime-int8'
    """

    path: Path
    manifest: Mapping[str, Any]
    report: Report | None = field(default=None, repr=False)

    @property
    def best(self) -> str | None:
        """The fastest variant that passed, for one sample on one thread; None if none did."""
        return next(iter(self.manifest["ranking"]), None)

    def __str__(self) -> str:
        return self.report.table() if self.report is not None else f"artefact {self.path}, best {self.best}"


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A temporary sibling of ``path`` that takes its place when the block ends well, and vanishes when it does not.

    An older artefact at ``path`` stays until then.

    Raises:
        ValueError: ``path`` exists and is no artefact.
    """
    target = Path(path)
    check_target(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield partial
        partial.chmod(0o755)  # mkdtemp keeps others out; an artefact is an ordinary folder
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
            os.replace(target, old / target.name)
            os.replace(partial, target)
            shutil.rmtree(old)
        else:
            os.replace(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def check_target(target: Path) -> None:
    """Refuse to write over what is no artefact.

    Raises:
        ValueError: a file, or a folder with other things in it.
    """
    if target.is_dir() and ((target / serve.MANIFEST).is_file() or not any(target.iterdir())):
        return
    if target.exists():
        raise ValueError(f"path {str(target)!r} exists and is no artefact; it is left alone. Choose a new path.")


def write_manifest(folder: Path, content: Mapping[str, Any], report: Report | None) -> dict[str, Any]:
    """Add the loader and the report, then the manifest with a checksum of every file; returns the manifest."""
    shutil.copyfile(serve.__file__, folder / SERVE)
    if report is not None:
        report.to_json(folder / REPORT)
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": serve.file_digest(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    manifest = json.loads(json.dumps({"format": serve.FORMAT, **content, "files": files}))
    manifest["sha256"] = serve.manifest_digest(manifest)
    (folder / serve.MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True), encoding="utf-8")
    return manifest
