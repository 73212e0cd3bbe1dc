"""The one way an optional dependency is imported, and the one wording when it is missing."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import an optional dependency at the point of use.

    Args:
        module: dotted name to import, such as ``"matplotlib.figure"``.
        extra: the extra of this distribution that installs it.
        purpose: what it is needed for, completing "it is needed for ...".

    Raises:
        ImportError: the module is not installed. An installed module that fails while importing raises its own error.

    Example::

        >>> require("json", extra="report", purpose="reading a report").loads("[1]")
        [1]
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise ImportError(
            f"{package} is not installed; it is needed for {purpose}: pip install 'lightning-perf[{extra}]'",
            name=package,
        ) from error
