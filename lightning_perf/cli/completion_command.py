"""``lightning-perf completion``: a script that completes commands, options and short names in bash and zsh."""

from __future__ import annotations

import argparse
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress

from lightning_perf.cli.short_names import callback_classes, strategy_names

_FLAG = re.compile(r"(?<![\w.-])--[A-Za-z][\w.]*")
_SCRIPT = """# written by: lightning-perf completion bash
_lightning_perf() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}} words
    if [[ $current == "=" ]]; then current=""; elif [[ $previous == "=" ]]; then previous=${{COMP_WORDS[COMP_CWORD-2]}}; fi
    case $previous in
        --callbacks|--callbacks.help|--trainer.callbacks|--trainer.callbacks+|--trainer.callbacks.help)
            COMPREPLY=($(compgen -W "{callbacks}" -- "$current")); return ;;
        --strategy|--trainer.strategy)
            COMPREPLY=($(compgen -W "{strategies}" -- "$current")); return ;;
    esac
    if [[ $COMP_CWORD == 1 ]]; then
        COMPREPLY=($(compgen -W "{commands}" -- "$current")); return
    fi
    case ${{COMP_WORDS[1]}} in
{cases}
    esac
    [[ $current == -* ]] && COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _lightning_perf lightning-perf
"""


def completion_script(options: Mapping[str, Iterable[str]]) -> str:
    """The bash script; everything that is no option, command or short name is completed as a file.

    Args:
        options: of each command.

    Example::

        >>> "run) words='--lossless' ;;" in completion_script({"run": ["--lossless"]})
        True
    """
    cases = "\n".join(f"        {command}) words='{' '.join(flags)}' ;;" for command, flags in options.items())
    return _SCRIPT.format(
        callbacks=" ".join(callback_classes()),
        strategies=" ".join(strategy_names()),
        commands=" ".join(options),
        cases=cases,
    )


def options_of(command: str, start: Callable[[list[str]], object]) -> list[str]:
    """The options that a command's help lists.

    Args:
        command: its name.
        start: called with the words of a command line, such as :func:`lightning_perf.cli.main`.
    """
    text = io.StringIO()
    with redirect_stdout(text), redirect_stderr(text), suppress(SystemExit):
        start([command, "--help"])
    return sorted(set(_FLAG.findall(text.getvalue())))


def run(args: Sequence[str], commands: Sequence[str], start: Callable[[list[str]], object]) -> int:
    """The command: print the script for a shell."""
    parser = argparse.ArgumentParser(
        "lightning-perf completion",
        description='Print a completion script. bash: eval "$(lightning-perf completion bash)"; zsh: autoload -U '
        "bashcompinit && bashcompinit, and then the same.",
    )
    parser.add_argument("shell", choices=("bash", "zsh"), help="zsh reads bash's script through bashcompinit")
    parser.parse_args(args)
    print(completion_script({name: options_of(name, start) for name in commands}), end="")
    return 0
