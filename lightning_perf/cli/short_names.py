"""The short names of the command line, and a callback built from a name and words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

import lightning_perf
from lightning_perf.host import PerfCallback
from lightning_perf.strategies.presets import PRESETS


def callback_classes() -> dict[str, type[PerfCallback]]:
    """Every callback of the house by its short name, sorted.

    Example::

        >>> list(callback_classes())[:3]
        ['AutoMixedPrecision', 'ChannelPruning', 'ChannelsLast']
    """
    exported = sorted(vars(lightning_perf).items())
    return {name: cls for name, cls in exported if isinstance(cls, type) and issubclass(cls, PerfCallback)}


def callback_called(name: str) -> type[PerfCallback]:
    """The callback of that name; ``lightning_perf.NAME`` is accepted as well.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    known = callback_classes()
    short = name.removeprefix("lightning_perf.")
    if short not in known:
        raise ValueError(f"unknown callback {name!r}; the callbacks are {', '.join(known)}.")
    return known[short]


def strategy_names() -> list[str]:
    """The presets, in the order of their table."""
    return list(PRESETS)


@dataclass(frozen=True)
class CallbackSpec:
    """A callback to be built, anew for every Trainer.

    Args:
        name: its short name.
        given: the arguments as they were given, for a reader.
        arguments: the arguments, parsed.
    """

    name: str
    given: Mapping[str, str]
    arguments: Mapping[str, Any]

    @classmethod
    def parse(cls, name: str, words: Mapping[str, str]) -> CallbackSpec:
        """Read arguments in the notation of LightningCLI, and build the callback once to have them checked.

        Raises:
            ValueError: an unknown name or argument, or a value of the wrong type.

        Example::

            >>> CallbackSpec.parse("OptimizerFactory", {"optimizer": "adamw", "lr": "3e-3"}).build().lr
            0.003
        """
        kind = callback_called(name)
        parser = parser_of(kind)
        known = {action.dest for action in parser._actions}
        for key in words:
            if key.partition(".")[0] not in known - {"help"}:
                takes = ", ".join(sorted(known - {"help"})) or "no arguments"
                raise ValueError(f"{kind.__name__} has no argument {key!r}; it takes {takes}.")
        try:
            found = parser.parse_args([f"--{key}={value}" for key, value in words.items()])
        except ArgumentError as error:
            raise ValueError(f"{kind.__name__}: {error}") from error
        spec = cls(kind.__name__, dict(words), found.as_dict())
        spec.build()
        return spec

    def build(self) -> PerfCallback:
        """A new instance."""
        return callback_called(self.name)(**self.arguments)

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{key}={value}' for key, value in self.given.items())})"


def parser_of(kind: type[PerfCallback]) -> ArgumentParser:
    """A parser of the constructor's arguments, whose help is the class's docstring."""
    summary = (kind.__doc__ or "").partition("\n")[0]
    parser = ArgumentParser(exit_on_error=False, prog=kind.__name__, description=summary)
    parser.add_class_arguments(kind)
    return parser


def help_of(names: Sequence[str]) -> str:
    """What callbacks take, in the words of their docstrings."""
    return "\n".join(parser_of(callback_called(name)).format_help() for name in names)
