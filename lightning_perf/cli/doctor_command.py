"""``lightning-perf doctor``: look at the machine and the installation, and say what works and what is missing."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.distributed as dist

from lightning_perf.cli.doctor import Diagnosis, Facts, diagnose
from lightning_perf.cli.doctor_compiler import try_compiler
from lightning_perf.cli.doctor_rows import IMPORTED_WHEN_PRESENT, PACKAGES
from lightning_perf.hardware import bfloat16_is_native, cpu_flags, cpu_quota, machine, memory_limit
from lightning_perf.speedups.malloc_tuning import why_not

_SECONDS = 180
#: Imports its arguments one by one; a module that takes the process down is the last one begun.
_IMPORTER = """
import importlib, sys
for name in sys.argv[1:]:
    print("begin", name, flush=True)
    try:
        importlib.import_module(name)
    except BaseException as error:
        print("fail", name, type(error).__name__ + ": " + " ".join(str(error).split())[:200], flush=True)
    else:
        print("done", name, flush=True)
"""


def look() -> Facts:
    """The facts of this machine; optional packages are imported, and a line compiled, in processes of their own."""
    here = machine()
    gpus = tuple(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    limit, memory = memory_limit(), here["memory_bytes"]
    compiler = try_compiler(os.environ)
    modules = [*(module for module, _ in PACKAGES.values()), *IMPORTED_WHEN_PRESENT]
    return Facts(
        versions=installed_versions(),
        modules=import_each([name for name in modules if find_spec(name) is not None]),
        requirements=_requirements(),
        python=platform.python_version(),
        cpu=None if here["cpu"] is None else str(here["cpu"]),
        flags=cpu_flags(),
        cores=int(here["cores"] or 1),
        quota=cpu_quota(),
        memory=min((int(value) for value in (memory, limit) if value is not None), default=None),
        gpus=gpus,
        bfloat16=bfloat16_is_native("cuda" if gpus else "cpu"),
        compiler=compiler.path,
        compiler_problem=compiler.problem,
        compiler_fix=compiler.fix,
        headers=Path(sysconfig.get_paths()["include"], "Python.h").is_file(),
        malloc=why_not(os.environ),
        backends=_backends(),
        espeak=shutil.which("espeak-ng") is not None,
        system=str(here["os"]),
    )


def installed_versions() -> dict[str, str]:
    """Every installed distribution, by its name in lower case with hyphens."""
    named = ((found.metadata["Name"], found.version) for found in metadata.distributions())
    return {name.lower().replace("_", "-"): version for name, version in named if name}


def import_each(modules: Iterable[str], interpreter: str = sys.executable) -> dict[str, str | None]:
    """Import modules in another process: None where it went well, else what happened.

    Example::

        >>> import_each(["json", "no_such_module"])
        {'json': None, 'no_such_module': "ModuleNotFoundError: No module named 'no_such_module'"}
    """
    left, found = list(modules), dict[str, str | None]()
    while left:
        try:
            done = subprocess.run(
                [interpreter, "-c", _IMPORTER, *left], capture_output=True, text=True, timeout=_SECONDS
            )
            output, ended = done.stdout, f"the process ended with status {done.returncode}"
        except subprocess.TimeoutExpired as late:
            output = late.stdout.decode() if isinstance(late.stdout, bytes) else late.stdout or ""
            ended = f"not done within {_SECONDS} s"
        begun = None
        for line in output.splitlines():
            word, _, rest = line.partition(" ")
            name, _, problem = rest.partition(" ")
            if name not in left or word not in ("begin", "done", "fail"):
                continue  # a package that prints while it is imported
            begun = name if word == "begin" else None
            if word != "begin":
                found[name] = problem or None
        if begun is None and not any(name in found for name in left):
            begun = left[0]  # not even started
        if begun is not None:
            found[begun] = ended
        left = [name for name in left if name not in found]
    return found


def _requirements() -> tuple[str, ...]:
    try:
        return tuple(metadata.requires("lightning-perf") or ())
    except metadata.PackageNotFoundError:
        return ()


def _backends() -> tuple[str, ...]:
    if not dist.is_available():
        return ()
    there = {"gloo": dist.is_gloo_available(), "nccl": dist.is_nccl_available(), "mpi": dist.is_mpi_available()}
    return tuple(name for name, is_there in there.items() if is_there)


def text(diagnosis: Diagnosis) -> str:
    """The diagnosis for a terminal."""
    width = max(map(len, diagnosis.machine))
    lines = [f"{name:<{width}}  {value}" for name, value in diagnosis.machine.items()]
    lines.append("")
    wide = max(len(state.feature) for state in diagnosis.features)
    for state in diagnosis.features:
        reason = "" if state.works else f"  {'; '.join(state.lacks)}{f': {state.fix}' if state.fix else ''}"
        lines.append(f"{'works  ' if state.works else 'missing'}  {state.feature:<{wide}}{reason}".rstrip())
    lines.append("")
    lines += [f"{one.level}: {one.text}; what to do: {one.fix}." for one in diagnosis.findings]
    lines.append("Something required is broken." if diagnosis.broken else "Nothing that is required is broken.")
    return "\n".join(lines)


def run(args: Sequence[str]) -> int:
    """The command: look, judge, print; 1 if something required is broken."""
    parser = argparse.ArgumentParser(
        "lightning-perf doctor",
        description="Say what this machine and installation can do, and what is missing for what.",
    )
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    wanted = parser.parse_args(args)
    diagnosis = diagnose(look())
    print(json.dumps(dataclasses.asdict(diagnosis), indent=2) if wanted.json else text(diagnosis))
    return int(diagnosis.broken)
