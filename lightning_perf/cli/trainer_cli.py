"""LightningCLI's own subcommands, with our callbacks known by short name."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

import lightning_perf


class SaveConfigBesideLogs(SaveConfigCallback):
    """Save the config into the logger's folder; without a logger it would land in, or on, the user's own files."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Lightning's hook: nothing without a logger."""
        if trainer.loggers:
            super().setup(trainer, pl_module, stage)


class PerfCLI(LightningCLI):
    """LightningCLI for any module and data, in which our callbacks are known by their short names.

    ``class_path: FastLogging`` and ``class_path: lightning_perf.FastLogging`` mean the same. ``--lossless true`` adds
    everything that changes no result. In a user's own ``LightningCLI(MyModule, MyData)`` use the long names.
    """

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """LightningCLI's hook: our own options."""
        parser.add_argument(
            "--lossless",
            type=bool,
            default=False,
            help="Add every callback of lightning_perf that changes no result (lightning_perf.lossless()).",
        )

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """LightningCLI's hook: append ``lossless()`` if asked for."""
        trainer: Any = super().instantiate_trainer(**kwargs)
        if self._get(self.config, "lossless", False):
            known = {type(callback) for callback in trainer.callbacks}
            trainer.callbacks[:0] = [callback for callback in lightning_perf.lossless() if type(callback) not in known]
        return trainer


def trainer_command(
    args: Sequence[str], *, run: bool = True, cli_class: type[PerfCLI] = PerfCLI, **options: Any
) -> PerfCLI:
    """Parse ``fit --config ...`` and the like, and run it; with ``run=False`` only build module, data and Trainer."""
    here = str(Path.cwd())
    if here not in sys.path:  # a console script does not see the user's own modules, `python script.py` does
        sys.path.insert(0, here)
    return cli_class(**{"save_config_callback": SaveConfigBesideLogs, **options}, args=list(args), run=run)
