"""Start a script, or a package's own command, in this process as Python itself would start it."""

from __future__ import annotations

import importlib.util
import io
import shutil
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

_HEAD_BYTES = 200


def start_script(path: str, args: Sequence[str]) -> None:
    """Run the file as ``python path args`` would: ``__main__``, ``__file__``, ``sys.argv`` and ``sys.path[0]`` are its own.

    Raises:
        SyntaxError: the file is no Python. What the script raises passes through.
    """
    file = Path(path).absolute()
    with io.open_code(str(file)) as stream:
        code = compile(stream.read(), str(file), "exec", dont_inherit=True)
    _become(path, args, str(file.resolve().parent))
    main = _new_main()
    main.__file__, main.__loader__ = str(file), SourceFileLoader("__main__", str(file))
    exec(code, main.__dict__)


def start_module(name: str, args: Sequence[str]) -> None:
    """Run the module, or the package's ``__main__``, as ``python -m name args`` would.

    Raises:
        ModuleNotFoundError: there is no such module, or the package has no command. What the module raises passes through.
    """
    _become("-m", args, str(Path.cwd()))
    spec, code = _find(name)
    sys.argv[0] = spec.origin or name
    main = _new_main()
    main.__spec__, main.__loader__, main.__package__ = spec, spec.loader, spec.parent
    main.__file__ = spec.origin
    exec(code, main.__dict__)


def find_script(path: str) -> str:
    """The file to start for a word of the command line: a path, or else the console script of that name.

    Raises:
        ValueError: no such file, a folder, or a program that is not written in Python.
    """
    if Path(path).is_dir():
        raise ValueError(f"{path!r} is a folder; give a script in it, or -m and the name of its package.")
    if Path(path).is_file():
        return path
    installed = shutil.which(path) if Path(path).name == path else None
    if installed is None:
        raise ValueError(f"{path!r} does not exist; give a script, an installed command, or -m and a package.")
    with open(installed, "rb") as stream:
        if b"python" not in stream.read(_HEAD_BYTES):
            raise ValueError(f"{path!r} is {installed}, which is not a Python script; give -m and a package.")
    return installed


def _find(name: str) -> tuple[ModuleSpec, CodeType]:
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.submodule_search_locations is not None:
        spec = importlib.util.find_spec(f"{name}.__main__")
        if spec is None:
            raise ModuleNotFoundError(f"package {name!r} has no __main__; name one of its modules", name=name)
    code = getattr(spec.loader, "get_code", lambda _: None)(spec.name) if spec is not None else None
    if spec is None or code is None:
        raise ModuleNotFoundError(f"no module named {name!r} that could be run", name=name)
    return spec, code


def _become(argument: str, args: Sequence[str], folder: str) -> None:
    sys.argv[:] = [argument, *args]
    if not getattr(sys.flags, "safe_path", False):  # `python -P` (3.11) has put nothing in front
        sys.path[0] = folder


def _new_main() -> ModuleType:
    """A module that stays ``__main__`` to the end: pickles, spawned processes and threads look it up there."""
    main = ModuleType("__main__")
    main.__dict__.update(__builtins__=__builtins__, __spec__=None, __annotations__={}, __cached__=None)
    sys.modules["__main__"] = main
    return main
