"""What this machine is: for the report's footer, and for levers that depend on the hardware."""

from __future__ import annotations

import os
import platform
import re
import sys
from importlib import metadata
from pathlib import Path

import torch

from lightning_perf._version import __version__

_CPUINFO = Path("/proc/cpuinfo")
_NVIDIA = Path("/proc/driver/nvidia/gpus")
_NATIVE_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}


def machine() -> dict[str, str | int | float | None]:
    """The machine as a report names it: processor, cores, torch threads, memory (bytes), system, GPU.

    Values that the system does not tell are None. Where the driver can be asked without it, CUDA is not initialised.

    Example::

        >>> sorted(machine())
        ['cores', 'cpu', 'gpu', 'memory_bytes', 'os', 'torch_threads']
    """
    return {
        "cpu": _cpu_model(_cpuinfo()) or platform.processor() or None,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_bytes": _memory_bytes(),
        "os": platform.platform(terse=True),
        "gpu": _gpu_name(),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the distributions that decide a result; one that is not installed is left out.

    Example::

        >>> "torch" in versions()
        True
    """
    found = {"python": platform.python_version(), "lightning-perf": __version__}
    for name in ("torch", "lightning", "pytorch-lightning", "torchmetrics", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def cpu_flags() -> frozenset[str]:
    """The processor's feature flags, from ``/proc/cpuinfo`` (x86 "flags", ARM "Features"); empty where unknown."""
    return _flags(_cpuinfo())


def bfloat16_is_native(device_type: str = "cpu") -> bool | None:
    """Whether bfloat16 arithmetic runs in hardware on this kind of device; None where that is unknown.

    Example::

        >>> bfloat16_is_native("cpu") in (True, False, None)
        True
    """
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False) if torch.cuda.is_available() else None
    if device_type == "cpu":
        flags = cpu_flags()
        return bool(flags & _NATIVE_BFLOAT16) if flags else None
    return None


def _cpuinfo() -> str:
    return _CPUINFO.read_text() if _CPUINFO.exists() else ""


def _flags(cpuinfo: str) -> frozenset[str]:
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.MULTILINE)
    return frozenset(found[1].split()) if found else frozenset()


def _cpu_model(cpuinfo: str) -> str | None:
    found = re.search(r"^(?:model name|Model|Hardware)\s*:(.*)$", cpuinfo, re.MULTILINE)
    return found[1].strip() if found else None


def _memory_bytes() -> int | None:
    if sys.platform == "win32" or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gpu_name() -> str | None:
    if torch.backends.mps.is_available():
        return "Apple MPS"
    count = torch.cuda.device_count()
    if count == 0:
        return None
    names = _driver_gpu_names() if not torch.cuda.is_initialized() else []
    if len(set(names)) != 1:
        names = [torch.cuda.get_device_name(index) for index in range(count)]
    return ", ".join(sorted(set(names))) if count == 1 else f"{count} x {', '.join(sorted(set(names)))}"


def _driver_gpu_names() -> list[str]:
    """Model names of all NVIDIA GPUs, from the Linux driver's own files: no CUDA context is made."""
    names: list[str] = []
    for path in sorted(_NVIDIA.glob("*/information")):
        found = re.search(r"^Model:(.*)$", path.read_text(), re.MULTILINE)
        if found:
            names.append(found[1].strip())
    return names
