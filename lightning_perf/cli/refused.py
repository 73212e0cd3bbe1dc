"""What a constructor refused, told with the line of the YAML file that asked for it."""

from __future__ import annotations

import functools
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from lightning_perf.cli.yaml_lines import Entry, entries

#: Modules whose frames lie between the parser and somebody's constructor.
_BETWEEN = (__name__, "lightning.pytorch.cli", "lightning_perf.cli.trainer_cli")
_HOUSES = ("lightning_perf", "lightning", "pytorch_lightning")
_WORDS = {None: ("null", "~", "", "none"), True: ("true", "yes", "on"), False: ("false", "no", "off")}


@dataclass(frozen=True)
class Refusal:
    """A constructor that raised: its class, what it was given, its exception, and where that came from."""

    kind: type
    arguments: Mapping[str, Any]
    error: Exception
    trace: TracebackType | None = None

    @property
    def is_ours(self) -> bool:
        """Whether the class is of this package or of Lightning: its message says all, and needs no traceback."""
        return self.kind.__module__.partition(".")[0] in _HOUSES

    def place(self, files: Sequence[Path], sections: Mapping[str, Any], words: Sequence[str]) -> str:
        """``FILE:LINE: `` of the argument that the message names, or else of the class; empty where that is not certain.

        Args:
            files: the configs.
            sections: section -> the class whose arguments it holds, where it names no ``class_path``.
            words: of the command line, where an argument may have been given instead.
        """
        asked = [(file, one) for file in files for one in entries(file.read_text(encoding="utf-8"))]
        found = [(file, one) for file, one in asked if self._is_of_kind(one, sections) and self._is_as_written(one)]
        if len(found) != 1:
            return ""
        [(file, entry)] = found
        named = named_argument(str(self.error), list(self.arguments))
        if named is None:
            return f"{file}:{entry.line}: "
        if named in entry.lines:
            return f"{file}:{entry.lines[named]}: "
        if any(re.search(rf"\.{named}(=|$)", word) for word in words):
            return ""
        return f"{file}:{entry.line}: "

    def text(self) -> str:
        """The message behind the name of the class; of somebody else's class also the kind of the error."""
        kind = "" if self.is_ours else f"{type(self.error).__name__}: "
        return f"{self.kind.__name__}: {kind}{self.error}"

    def print_trace(self) -> None:
        """The traceback from the constructor on, to standard error."""
        trace = self.trace
        while trace is not None and trace.tb_frame.f_globals.get("__name__") in _BETWEEN:
            trace = trace.tb_next
        traceback.print_exception(type(self.error), self.error, trace)

    def _is_of_kind(self, entry: Entry, sections: Mapping[str, Any]) -> bool:
        if entry.class_path is None:
            return sections.get(entry.section) is self.kind
        module, dot, name = entry.class_path.rpartition(".")
        return getattr(sys.modules.get(module), name, None) is self.kind if dot else name == self.kind.__name__

    def _is_as_written(self, entry: Entry) -> bool:
        """Whether the constructor was called with what stands there."""
        pairs = [(text, self.arguments[key]) for key, text in entry.scalars.items() if key in self.arguments]
        return all(may_be(text, value) for text, value in pairs)


def recorded(build: Callable[..., Any], refusals: list[Refusal]) -> Callable[..., Any]:
    """``build(kind, **arguments)`` that keeps what a constructor raised; jsonargparse would bury it in words about types."""

    @functools.wraps(build)
    def instantiator(kind: type, *args: Any, **arguments: Any) -> Any:
        try:
            return build(kind, *args, **arguments)
        except Exception as error:
            given = {key: value for key, value in arguments.items() if key != "applied_instantiation_links"}
            refusals.append(Refusal(kind, given, error, error.__traceback__))
            raise

    return instantiator


def named_argument(message: str, arguments: Sequence[str]) -> str | None:
    """The argument that a message is about: the first one written as ``name=``, or else the first one that occurs.

    Example::

        >>> named_argument("the optimizer wants another lr, and lr=-1.0 is none", ["optimizer", "lr"])
        'lr'
    """
    for pattern in (r"(?<![\w.]){}(?==)", r"(?<![\w.]){}(?!\w)"):
        hits = [(match.start(), name) for name in arguments if (match := re.search(pattern.format(name), message))]
        if hits:
            return min(hits)[1]
    return None


def may_be(written: str, value: Any) -> bool:
    """Whether a value may come from these characters of a YAML file; an object may come from any.

    Example::

        >>> may_be("3e-3", 0.003), may_be("true", True), may_be("null", None), may_be("1", 2)
        (True, True, True, False)
    """
    if value is None or isinstance(value, bool):
        return written.lower() in _WORDS[value]
    if isinstance(value, (int, float)):
        try:
            return float(written) == value
        except ValueError:
            return False
    return written == value if isinstance(value, str) else True
