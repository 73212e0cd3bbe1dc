"""Where loggers that write files write them.

The names set here are of instances, which the table of private names cannot hold; the tests see each release.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def holds_files(folder: Any) -> bool:
    """Whether it is a folder of this machine that is not empty."""
    return isinstance(folder, (str, os.PathLike)) and os.path.isdir(folder) and any(os.scandir(folder))


def log_below(logger: Any, folder: Path) -> None:
    """Have a logger that has written nothing yet write below ``folder``; one of another kind stays as it is."""
    for name in ("_save_dir", "_root_dir"):
        if isinstance(getattr(logger, name, None), (str, os.PathLike)):
            setattr(logger, name, str(folder))
