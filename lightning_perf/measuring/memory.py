"""Resident memory of this process, and its peak since a chosen moment."""

from __future__ import annotations

import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


def rss_bytes() -> int | None:
    """Resident memory now, in bytes; None where the system does not tell (elsewhere than Linux)."""
    return _field(_read(_STATUS), "VmRSS")


def peak_rss_bytes() -> int | None:
    """Largest resident memory since the process began or since `reset_peak_rss`, in bytes; None where unknown.

    On Linux this is ``VmHWM``; on macOS and other Unix systems ``ru_maxrss``, which cannot be reset.
    """
    peak = _field(_read(_STATUS), "VmHWM")
    if peak is not None or sys.platform == "win32":
        return peak
    import resource

    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def reset_peak_rss() -> bool:
    """Start a new peak at the memory of this moment; False where the system cannot (it needs Linux and the right).

    A peak after a refused reset covers the whole process, imports included: such a number must say so.

    Source: proc(5), ``/proc/pid/clear_refs``, value 5.

    Example::

        >>> isinstance(reset_peak_rss(), bool)
        True
    """
    if not _CLEAR_REFS.exists():
        return False
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _field(status: str, name: str) -> int | None:
    """Bytes of one ``Name:   123 kB`` line of a status file."""
    for line in status.splitlines():
        key, _, rest = line.partition(":")
        if key == name:
            return int(rest.split()[0]) * 1024
    return None
