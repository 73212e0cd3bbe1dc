"""``lightning-perf run``: somebody's script or command, unchanged, with callbacks and a strategy in every Trainer."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType

from lightning_perf.cli import script
from lightning_perf.cli.additions import Additions
from lightning_perf.cli.short_names import CallbackSpec, callback_classes, help_of, strategy_names
from lightning_perf.host import MisconfigurationException
from lightning_perf.strategies.presets import preset_called

_USAGE = """usage: lightning-perf run [options] SCRIPT [arguments of the script]
       lightning-perf run [options] -m MODULE [arguments of the module]

Start a script, an installed command or a module as Python would, and add callbacks to every Trainer it makes.

options:
  --callbacks NAME[,NAME]   callbacks to add, once or more:
                            {callbacks}
  --callbacks.KEY VALUE     an argument of the one just named: --callbacks OptimizerFactory --callbacks.optimizer auto
  --callbacks.help NAME     what a callback takes
  --lossless                every callback that changes no result, lightning_perf.lossless()
  --strategy NAME           in the place of ddp, where the script asks for it:
                            {strategies}
"""
_INTERRUPTED = 130


@dataclass
class Request:
    """The words of the command line, apart: ours, and those that belong to the script.

    ``words`` are ours as given, ``callbacks`` names with their arguments, ``help`` what to explain, None for nothing.
    """

    words: list[str] = field(default_factory=list)
    callbacks: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    lossless: bool = False
    strategy: str | None = None
    help: list[str] | None = None
    is_module: bool = False
    target: str | None = None
    rest: list[str] = field(default_factory=list)


def read_words(args: Sequence[str]) -> Request:
    """Take our options from the front; the first word that is none is the script's, and so is all after it.

    Raises:
        ValueError: an option that is unknown, lacks its value, or has no callback to belong to; no script.

    Example::

        >>> request = read_words("--callbacks FastLogging --lossless -m chemprop --callbacks train".split())
        >>> request.callbacks, request.lossless, request.target, request.rest
        ([('FastLogging', {})], True, 'chemprop', ['--callbacks', 'train'])
    """
    found, left = Request(), list(args)
    while left and left[0].startswith("-") and found.help is None:
        word = left.pop(0)
        if word in ("-m", "--"):
            found.is_module = word == "-m"
            break
        found.words.append(word)
        name, assigned, value = word.partition("=")
        if name in ("-h", "--help"):
            found.help = []
        elif name == "--lossless":
            if assigned and value.lower() != "true":
                raise ValueError(f"{word}: give --lossless, or leave it out.")
            found.lossless = True
        else:
            if not assigned and not left:
                raise ValueError(f"{name} lacks its value.")
            if not assigned:
                value = left.pop(0)
                found.words.append(value)
            _take(found, name, value)
    if found.help is None and not left:
        raise ValueError("-m lacks its module." if found.is_module else "no script was given.")
    found.target, found.rest = left[0] if left else None, left[1:]
    return found


def _take(found: Request, name: str, value: str) -> None:
    if name in ("--callbacks", "--callbacks+"):  # LightningCLI appends with +=; here every one is appended
        names = [one.strip() for one in value.split(",") if one.strip()]
        if not names:
            raise ValueError(f"{name} {value!r} names no callback; give one of {', '.join(callback_classes())}.")
        found.callbacks += [(one, {}) for one in names]
    elif name == "--callbacks.help":
        found.help = value.split(",")
    elif name.startswith("--callbacks."):
        if not found.callbacks:
            raise ValueError(f"{name} belongs to no callback; name it before: --callbacks NAME {name} {value}")
        found.callbacks[-1][1][name.removeprefix("--callbacks.").removeprefix("init_args.")] = value
    elif name == "--strategy":
        found.strategy = preset_called(value).name
    else:
        raise ValueError(
            f"unknown option {name!r}; those of run are --callbacks, --lossless, --strategy and -m, and those of the script "
            "follow its name."
        )


def run(args: Sequence[str]) -> int:
    """The command: add to every Trainer, become the script, and end as it ends."""
    try:
        request = read_words(args)
        if request.help is not None:
            print(help_of(request.help) if request.help else _usage(), end="")
            return 0
        specs = [CallbackSpec.parse(name, words) for name, words in request.callbacks]
        if not (specs or request.lossless or request.strategy):
            raise ValueError("nothing to add; give --lossless, --callbacks NAME or --strategy NAME.")
        assert request.target is not None
        target = request.target if request.is_module else script.find_script(request.target)
    except (ValueError, TypeError, MisconfigurationException, ImportError) as error:
        print(f"lightning-perf run: error: {error}", file=sys.stderr)
        return 2
    words = request.words
    additions = Additions(specs, lossless=request.lossless, strategy=request.strategy, words=words)
    additions.install()
    try:
        (script.start_module if request.is_module else script.start_script)(target, request.rest)
    except (Exception, KeyboardInterrupt) as error:
        # The traceback begins in the script, as it would without us.
        error = error.with_traceback(beyond(error.__traceback__, {__file__, script.__file__}))
        sys.excepthook(type(error), error, error.__traceback__)
        return _INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1
    finally:
        additions.finish()
    return 0


def beyond(trace: TracebackType | None, files: set[str]) -> TracebackType | None:
    """The traceback without the frames of these files at its beginning."""
    while trace is not None and trace.tb_frame.f_code.co_filename in files:
        trace = trace.tb_next
    return trace


def _usage() -> str:
    return _USAGE.format(callbacks=", ".join(callback_classes()), strategies=", ".join(strategy_names()))
