"""From a complaint of jsonargparse to the line of the YAML file that it is about."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
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
