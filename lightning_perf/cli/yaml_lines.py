"""From a complaint of jsonargparse to the line of the YAML file that it is about."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

#: What a complaint names, the most specific wording first.
_NAMES = (
    r"[Oo]ption '([^']+)'",
    r"import path string: (\S+)",
    r"Parser key \"([^\"]+)\"",
    r"class_path '([^']+)'",
)


def located(message: str, files: Sequence[Path]) -> str:
    """``FILE:LINE: `` for a complaint about a key or value of one of these files; empty where that is not certain."""
    for pattern in _NAMES:
        for name in reversed(re.findall(pattern, message)):
            places = [f"{file}:{line}: " for file in files for line in lines_of(name, file.read_text(encoding="utf-8"))]
            if len(places) == 1:
                return places[0]
    return ""


def lines_of(name: str, text: str) -> list[int]:
    """Lines, from 1, of keys whose dotted path ends in ``name`` and of values that are ``name``; none in broken YAML.

    Example::

        >>> lines_of("trainer.max_epochs", "trainer:\\n  max_epochs: 1\\n")
        [2]
    """
    try:
        root = yaml.compose(text)
    except yaml.YAMLError:
        return []  # the complaint is about the syntax, and says where
    return [line for path, line in _places(root, ()) if f".{path}".endswith(f".{name}")]


@dataclass(frozen=True)
class Entry:
    """A place of a YAML file that asks for an object.

    Args:
        section: the key that it stands under.
        class_path: of the class, as written; None where the section holds the arguments themselves.
        line: of the class, or of the section; from 1.
        lines: of the arguments.
        scalars: arguments that are a single word or number, as written.
    """

    section: str
    class_path: str | None
    line: int
    lines: Mapping[str, int] = field(default_factory=dict)
    scalars: Mapping[str, str] = field(default_factory=dict)


def entries(text: str) -> list[Entry]:
    """Every place of a YAML file that may ask for an object; none in broken YAML.

    Example::

        >>> [one.lines for one in entries("a:\\n  class_path: X\\n  init_args:\\n    b: 1\\n") if one.class_path == "X"]
        [{'b': 4}]
    """
    try:
        root = yaml.compose(text)
    except yaml.YAMLError:
        return []
    return list(_entries(root, "", 1))


def config_files(words: Sequence[str]) -> list[Path]:
    """The files that ``--config`` names on a command line, those that exist."""
    named = [later for earlier, later in itertools.pairwise(words) if earlier in ("--config", "-c")]
    named += [word.partition("=")[2] for word in words if word.startswith("--config=")]
    return [Path(name) for name in named if name and Path(name).is_file()]


def _places(node: yaml.Node | None, path: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            # A class's arguments are named without the step in between.
            inner = path if key.value in ("init_args", "dict_kwargs") else (*path, str(key.value))
            yield ".".join(inner), key.start_mark.line + 1
            yield from _places(value, inner)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _places(value, path)
    elif isinstance(node, yaml.ScalarNode):
        yield str(node.value), node.start_mark.line + 1


def _entries(node: yaml.Node | None, section: str, line: int) -> Iterator[Entry]:
    if isinstance(node, yaml.MappingNode):
        values = _arguments(node)
        if isinstance(values.get("class_path", (0, None))[1], yaml.ScalarNode):
            at, named = values["class_path"]
            given = _arguments(values.get("init_args", (0, None))[1]) | _arguments(
                values.get("dict_kwargs", (0, None))[1]
            )
            yield _entry(section, str(named.value), at, given)
        else:
            yield _entry(section, None, line, values)
        for key, (at, value) in values.items():
            if key != "class_path":
                yield from _entries(value, section if key in ("init_args", "dict_kwargs") else key.rstrip("+"), at)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _entries(value, section, value.start_mark.line + 1)
    elif isinstance(node, yaml.ScalarNode):
        yield Entry(section, str(node.value), node.start_mark.line + 1)


def _arguments(node: yaml.Node | None) -> dict[str, tuple[int, yaml.Node]]:
    if not isinstance(node, yaml.MappingNode):
        return {}
    return {str(key.value): (key.start_mark.line + 1, value) for key, value in node.value}


def _entry(section: str, class_path: str | None, line: int, given: Mapping[str, tuple[int, yaml.Node]]) -> Entry:
    scalars = {key: str(value.value) for key, (_, value) in given.items() if isinstance(value, yaml.ScalarNode)}
    return Entry(section, class_path, line, {key: at for key, (at, _) in given.items()}, scalars)
