"""``lightning-perf``: LightningCLI's own subcommands, and commands of ours."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from lightning.pytorch.cli import LightningCLI

import lightning_perf
from lightning_perf.cli import (
    compare_command,
    completion_command,
    doctor_command,
    export_command,
    link_command,
    profile_command,
    quantize_command,
    race_command,
    recipes_command,
    run_command,
)
from lightning_perf.cli.trainer_cli import trainer_command

_COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "compare": compare_command.run,
    "completion": lambda args: completion_command.run(args, [*LightningCLI.subcommands(), *_COMMANDS], main),
    "doctor": doctor_command.run,
    "export": export_command.run,
    "link": link_command.run,
    "profile": profile_command.run,
    "quantize": quantize_command.run,
    "race": race_command.run,
    "recipes": recipes_command.run,
    "run": run_command.run,
}
_USAGE = """usage: lightning-perf COMMAND [options]

Trainer commands (LightningCLI for modules of lightning.pytorch; `lightning-perf COMMAND --help` lists every option):
  fit         train a module:  lightning-perf fit --config my.yaml
  validate    one validation epoch
  test        one test epoch
  predict     predictions

Commands of lightning_perf:
  compare     fit several configs, interleaved, and report each beside the first:
              lightning-perf compare --config baseline.yaml --config fast.yaml
  completion  complete commands, options and short names in the shell:
              eval "$(lightning-perf completion bash)"
  doctor      what this machine and installation can do, and what is missing for what
  export      write a folder that runs in other runtimes, every variant checked and timed:
              lightning-perf export --config my.yaml --ckpt_path best.ckpt --output model.lpx
  link        measure the link between processes, for the choice of a DDP preset:
              torchrun --nnodes=2 --nproc-per-node=1 ... -m lightning_perf link
  profile     train some steps and report where the time goes and what to switch on:
              lightning-perf profile --config my.yaml --html profile.html
  quantize    quantize without training, within a budget for the metric, and export:
              lightning-perf quantize --config my.yaml --ckpt_path best.ckpt --max_drop 0.5%
  race        race optimizers, learning rates and schedules against the module's own:
              lightning-perf race --config my.yaml --budget 10m --metric val_acc
  recipes     list the complete training set-ups that come along, or copy one to change it:
              lightning-perf recipes copy tabular my_table
  run         start somebody's script or command with callbacks in every Trainer it makes:
              lightning-perf run --lossless train.py --epochs 3

Options:
  --version   print the version
  --help      print this text
"""


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of the command ``lightning-perf``; ``args`` default to the command line."""
    words = list(sys.argv[1:] if args is None else args)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_USAGE, end="")
    elif words[0] == "--version":
        print(lightning_perf.__version__)
    elif words[0] in _COMMANDS:
        sys.exit(_COMMANDS[words[0]](words[1:]))
    elif words[0] in LightningCLI.subcommands():
        trainer_command(words)
    else:
        known = [*LightningCLI.subcommands(), *_COMMANDS]
        sys.exit(f"lightning-perf: unknown command {words[0]!r}; the commands are {', '.join(known)}.")
