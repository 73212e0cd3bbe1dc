"""What a container may use of the machine, from the files of Linux control groups."""

from __future__ import annotations

from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def cpu_quota(root: Path = _CGROUP) -> float | None:
    """Cores' worth of time that the control group of this container may use; None: no limit, or unknown.

    Example::

        >>> cpu_quota(Path("/nowhere")) is None
        True
    """
    unified = _words(root / "cpu.max")
    if len(unified) == 2:
        return None if unified[0] == "max" else int(unified[0]) / int(unified[1])
    quota, period = _words(root / "cpu" / "cpu.cfs_quota_us"), _words(root / "cpu" / "cpu.cfs_period_us")
    if not quota or not period or int(quota[0]) < 0:
        return None
    return int(quota[0]) / int(period[0])


def memory_limit(root: Path = _CGROUP) -> int | None:
    """Bytes that this container may use; None: no limit, or unknown."""
    found = _words(root / "memory.max") or _words(root / "memory" / "memory.limit_in_bytes")
    if not found or found[0] == "max" or int(found[0]) >= 1 << 60:  # the older interface writes a huge number
        return None
    return int(found[0])


def _words(path: Path) -> list[str]:
    return path.read_text().split() if path.is_file() else []
