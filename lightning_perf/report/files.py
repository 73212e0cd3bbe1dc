"""Whether a report can be written, asked before anything is trained or rendered."""

from __future__ import annotations

import tempfile
from pathlib import Path


class UnwritableReportError(OSError):
    """A report cannot be written where it was asked for."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"cannot write the report {str(path)!r}: {reason}. A report needs a folder in which files can be made; "
            "name another path, or change the folder's permissions"
        )
        self.path = path


def check_writable(path: str | Path) -> Path:
    """Make sure that the report file ``path`` could be written now; leaves nothing behind. Returns the path.

    Folders that do not exist yet are fine as long as they could be made.

    Raises:
        UnwritableReportError: the file or its folder cannot be written, with path, reason and fix.

    Example::

        >>> with tempfile.TemporaryDirectory() as folder:
        ...     check_writable(Path(folder) / "new" / "report.html").name
        'report.html'
    """
    target = Path(path).expanduser()
    try:
        if target.is_dir():
            raise UnwritableReportError(target, "it is a folder; add a file name")
        if target.exists():
            with target.open("ab"):
                return target
        folder = target.parent
        while not folder.exists():
            folder = folder.parent
        with tempfile.TemporaryFile(dir=folder):
            return target
    except UnwritableReportError:
        raise
    except OSError as error:
        raise UnwritableReportError(target, error.strerror or str(error)) from error
