"""LightningCLI's own subcommands, with our callbacks known by short name."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

import lightning_perf
from lightning_perf.cli.refused import Refusal, recorded
from lightning_perf.cli.yaml_lines import config_files, located

#: What a constructor raises that was given something it cannot work with.
_SETTINGS = (ValueError, TypeError, ImportError, MisconfigurationException)


class SaveConfigBesideLogs(SaveConfigCallback):
    """Save the config into the logger's folder; without a logger it would land in, or on, the user's own files."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Lightning's hook: nothing without a logger."""
        if trainer.loggers:
            super().setup(trainer, pl_module, stage)


class PerfParser(LightningArgumentParser):
    """LightningCLI's parser, whose complaints begin with the line of the YAML file, and not with a page of usage."""

    words: Sequence[str] = ()
    refused: list[Refusal] | None = None

    def add_instantiator(self, instantiator: Any, *args: Any, **kwargs: Any) -> None:
        """jsonargparse's hook, which LightningCLI uses for model and data: keep what a constructor refuses."""
        wanted = instantiator if self.refused is None else recorded(instantiator, self.refused)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # jsonargparse is about to move this method
            super().add_instantiator(wanted, *args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """jsonargparse's hook for everything that it complains about."""
        super().error(f"{located(message, config_files(self.words))}{message}", ex)

    def print_usage(self, file: Any = None) -> None:
        """argparse's hook, called before a complaint, which the list of all options would hide; ``--help`` has it."""


class PerfCLI(LightningCLI):
    """LightningCLI for any module and data, in which our callbacks are known by their short names.

    ``class_path: FastLogging`` and ``class_path: lightning_perf.FastLogging`` mean the same. ``--lossless true`` adds
    everything that changes no result. In a user's own ``LightningCLI(MyModule, MyData)`` use the long names.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        words = kwargs.get("args")
        self._words = tuple(words) if isinstance(words, (list, tuple)) else tuple(sys.argv[1:])
        self._refused: list[Refusal] = []
        super().__init__(*args, **{"parser_class": PerfParser, **kwargs})

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """LightningCLI's hook, for the parser and for that of every subcommand."""
        parser = super().init_parser(**kwargs)
        if isinstance(parser, PerfParser):
            parser.words, parser.refused = self._words, self._refused
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """LightningCLI's hook: our own options."""
        parser.add_argument(
            "--lossless",
            type=bool,
            default=False,
            help="Add every callback of lightning_perf that changes no result (lightning_perf.lossless()).",
        )

    def instantiate_classes(self) -> None:
        """LightningCLI's hook: what a constructor refuses is told with the line of the YAML file that asked for it."""
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # jsonargparse is about to move this method, which LightningCLI uses as well
            self.parser.add_instantiator(lambda kind, *args, **given: kind(*args, **given), object)
        try:
            super().instantiate_classes()
        except Exception as error:
            self._tell(error)
            raise

    def _tell(self, error: Exception) -> None:
        """End with the line of the config; return where the error is nobody's refusal, and needs its traceback."""
        told = [one for one in self._refused if one.error is error or (str(one.error) and str(one.error) in str(error))]
        if not told:
            return
        refused = told[-1]
        if refused.is_ours and not isinstance(refused.error, _SETTINGS):
            return  # a defect, which nobody's config can mend
        sections = {"model": self.model_class, "data": self.datamodule_class, "trainer": self.trainer_class}
        place = refused.place(config_files(self._words), sections, self._words)
        if not refused.is_ours:
            refused.print_trace()
        LightningArgumentParser.error(self._parser(self.subcommand), f"{place}{refused.text()}", refused.error)

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """LightningCLI's hook: append ``lossless()`` if asked for."""
        try:
            trainer: Any = super().instantiate_trainer(**kwargs)
        except Exception as error:
            kind: Any = self.trainer_class
            self._refused.append(Refusal(kind, vars(self._get(self.config_init, "trainer")), error))
            raise
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
    words = None if list(args) == sys.argv[1:] else list(args)  # LightningCLI warns of words beside the command line's
    return cli_class(**{"save_config_callback": SaveConfigBesideLogs, **options}, args=words, run=run)
