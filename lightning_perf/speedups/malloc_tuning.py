"""Keep freed memory in the process, so that a CPU step does not fault its activations in anew."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from typing import Any

from lightning_perf.host import PerfCallback

# Parameters of glibc's mallopt, from <malloc.h>.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_MIB = 1 << 20
_RETAIN = ((_M_MMAP_THRESHOLD, (1024 * _MIB, 32 * _MIB)), (_M_TRIM_THRESHOLD, (2**31 - 1,)), (_M_TOP_PAD, (64 * _MIB,)))
# Where glibc's own dynamic thresholds end once a large block was freed (64 bit), and its default padding.
_RELEASE = ((_M_MMAP_THRESHOLD, 32 * _MIB), (_M_TRIM_THRESHOLD, 64 * _MIB), (_M_TOP_PAD, 128 * 1024))

_holders: set[int] = set()


class MallocTuning(PerfCallback):
    """Tell glibc's malloc to keep freed memory for the time of a run on the CPU.

    By default malloc gives large blocks back to the system as soon as they are free, and the next step faults every page
    of its activations in again: thousands of page faults a step in a convolution net. Values are not touched: results are
    the same bit for bit. Peak memory stays about the same where batches have one shape, and the memory between the steps is
    the peak; batches of ever other lengths leave pieces of every size (1.5 times the peak in ``recipes/translation``).
    Afterwards the thresholds are put where glibc's own would be after large frees (they cannot be read back), and what is
    free is given back.

    Does nothing, and says so, on other devices, without glibc, or where the user has chosen an allocator or its
    settings (``MALLOC_*_``, ``GLIBC_TUNABLES``, ``LD_PRELOAD``).

    Source: mallopt(3).

    Example::

        >>> import lightning_perf as lp
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[lp.MallocTuning()], logger=False, enable_checkpointing=False)
    """

    def engage(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Set the thresholds in this process."""
        device = trainer.strategy.root_device.type
        if device != "cpu":
            self.say(f"the module runs on {device}; nothing was changed.")
            return
        reason = why_not(os.environ)
        if reason is not None:
            self.say(f"{reason}; nothing was changed.")
            return
        retain_heap(id(self))
        self.undo(trainer).push(release_heap, id(self))
        self.say("malloc keeps freed memory for the time of this run.")


def why_not(environment: Mapping[str, str]) -> str | None:
    """Why malloc is not ours to tune: no glibc, or settings of the user's; ``None`` if it is.

    Example::

        >>> why_not({"LD_PRELOAD": "/usr/lib/libtcmalloc_minimal.so.4"})
        'LD_PRELOAD=/usr/lib/libtcmalloc_minimal.so.4 brings an allocator of its own'
    """
    preloaded = environment.get("LD_PRELOAD", "")
    if "malloc" in preloaded:
        return f"LD_PRELOAD={preloaded} brings an allocator of its own"
    own = [name for name in environment if name.startswith("MALLOC_") and name.endswith("_")]
    if "glibc.malloc" in environment.get("GLIBC_TUNABLES", ""):
        own.append("GLIBC_TUNABLES")
    if own:
        return f"{', '.join(own)} is set by the user"
    return None if _glibc() is not None else "this system's allocator is not glibc's"


def retain_heap(holder: int) -> None:
    """Keep freed memory in this process until every holder has called :func:`release_heap`."""
    libc = _glibc()
    assert libc is not None
    if not _holders:
        for parameter, values in _RETAIN:
            next((value for value in values if libc.mallopt(parameter, value)), None)  # old releases cap the threshold
    _holders.add(holder)


def release_heap(holder: int) -> None:
    """Give freed memory back to the system from now on, and what is free at once."""
    libc = _glibc()
    assert libc is not None
    _holders.discard(holder)
    if not _holders:
        for parameter, value in _RELEASE:
            libc.mallopt(parameter, value)
        libc.malloc_trim(0)


def _glibc() -> Any:
    if os.name != "posix":
        return None
    libc = ctypes.CDLL(None)
    names = ("gnu_get_libc_version", "mallopt", "malloc_trim")
    return libc if all(hasattr(libc, name) for name in names) else None
