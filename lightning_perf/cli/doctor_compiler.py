"""Whether the C++ compiler that torch would use does compile: one line, in a folder of its own, built and called."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lightning_perf.deploy.inductor import COMPILERS

_SECONDS = 60
_ANSWER = 42
#: The standard library's headers and OpenMP, which torch's own kernels need as well; C linkage, so that the name is known.
_SOURCE = f"""#include <vector>
#include <omp.h>
extern "C" int answer() {{ std::vector<int> one({_ANSWER} * (omp_get_max_threads() > 0)); return (int)one.size(); }}
"""
_FLAGS = ("-std=c++17", "-shared", "-fPIC", "-fopenmp", "-o", "answer.so", "answer.cpp")
#: A library that cannot be loaded may take the process down.
_CALL = "import ctypes, sys; sys.exit(0 if ctypes.CDLL(sys.argv[1]).answer() == int(sys.argv[2]) else 'another answer')"

_OTHER = "set CXX to a compiler that works, or install g++ (Debian, Ubuntu: apt-get install g++)"


@dataclass(frozen=True)
class Compiler:
    """What was found: the path, what is wrong with it (None: it compiled, linked and ran a line), and what to do."""

    path: str | None
    problem: str | None = None
    fix: str = ""


def name_for_torch(environment: Mapping[str, str], system: str = sys.platform) -> str:
    """The compiler that torch's code generator starts: the variable ``CXX``, or the one that its system usually has.

    Example::

        >>> name_for_torch({}, "linux"), name_for_torch({"CXX": "clang++-17"}, "linux"), name_for_torch({}, "win32")
        ('g++', 'clang++-17', 'cl')
    """
    return environment.get("CXX", {"darwin": "clang++", "win32": "cl"}.get(system, "g++"))


def try_compiler(environment: Mapping[str, str], system: str = sys.platform, seconds: float = _SECONDS) -> Compiler:
    """Compile a line, link it, load it in another process and call it; on systems other than Linux only look for it."""
    name = name_for_torch(environment, system)
    path = shutil.which(name, path=environment.get("PATH"))
    if path is None:
        return _absent(name, environment)
    if system != "linux":
        return Compiler(path)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "answer.cpp").write_text(_SOURCE, encoding="utf-8")
        problem = _failure([path, *_FLAGS], folder, environment, seconds)
        if problem is not None:
            return Compiler(path, f"{path} does not compile a line of C++: {problem}", _mend(problem))
        library = Path(folder) / "answer.so"
        if not library.exists():
            return Compiler(path, f"{path} ends well and writes no library", _OTHER)
        problem = _failure([sys.executable, "-c", _CALL, str(library), str(_ANSWER)], folder, environment, seconds)
    if problem is not None:
        where = f"what {path} compiles cannot be loaded from {tempfile.gettempdir()}: {problem}"
        return Compiler(path, where, "set TMPDIR to a folder that may hold programs (a mount without noexec)")
    return Compiler(path)


def _absent(name: str, environment: Mapping[str, str]) -> Compiler:
    others = [one for one in COMPILERS if shutil.which(one, path=environment.get("PATH"))]
    if "CXX" in environment:
        return Compiler(None, f"CXX={name!r} names no program", "set CXX to a C++ compiler, or unset it")
    if others:
        return Compiler(None, f"torch looks for {name}, and there is only {others[0]}", f"set CXX={others[0]}")
    return Compiler(None, f"no C++ compiler: torch looks for {name}", _OTHER)


def _failure(command: list[str], folder: str, environment: Mapping[str, str], seconds: float) -> str | None:
    """What went wrong, in the words of the program's first complaint; None: nothing."""
    try:
        done = subprocess.run(
            command, cwd=folder, env=dict(environment), capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return f"not done within {seconds:g} s"
    except OSError as error:
        return str(error)
    if done.returncode == 0:
        return None
    said = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    telling = [line for line in said if "error" in line.lower() or "cannot" in line.lower()]
    return (telling or said or [f"status {done.returncode}, and no word"])[0][:200]


def _mend(problem: str) -> str:
    if "omp.h" in problem or "gomp" in problem:
        return "install OpenMP for this compiler (Debian, Ubuntu: apt-get install libgomp1, or libomp-dev for clang)"
    if "crt" in problem or "vector" in problem or "cc1plus" in problem:
        return "its parts are not all there; install it whole (Debian, Ubuntu: apt-get install g++ libc6-dev)"
    return _OTHER
