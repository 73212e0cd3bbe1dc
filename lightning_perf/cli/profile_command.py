"""``lightning-perf profile``: some steps of a config's training under :class:`lightning_perf.ThroughputProfiler`."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_perf.autopilot.bystanders import keep_apart
from lightning_perf.autopilot.compare import check_outputs
from lightning_perf.cli.outputs import show
from lightning_perf.cli.trainer_cli import PerfCLI, trainer_command
from lightning_perf.profiling.callback import ThroughputProfiler
from lightning_perf.profiling.profile_report import ProfileReport

#: A checkpoint of what is no whole training is nobody's; an early stopping misses what an epoch's end would have logged.
_STAY_OUT = ("Checkpoint", "EarlyStopping")


class ProfiledCLI(PerfCLI):
    """``lightning-perf fit`` with a profiler beside the config's own callbacks."""

    profiler: ThroughputProfiler
    folder: str

    def before_fit(self) -> None:
        """LightningCLI's hook: start profiling."""
        trainer: Any = self.trainer
        keep_apart(trainer, self.folder, _STAY_OUT)
        trainer.callbacks.insert(0, self.profiler)


def profile_config(
    config: str | Path, *, steps: int = 100, overrides: Sequence[str] = (), profiler: ThroughputProfiler | None = None
) -> ProfileReport:
    """Train ``steps`` optimizer steps of a LightningCLI config and report where the time went.

    Args:
        config: path of a YAML file that ``lightning-perf fit --config`` accepts.
        steps: optimizer steps to train; with accumulation each takes several batches.
        overrides: further arguments of ``fit``, such as ``--data.init_args.num_workers=2``.
        profiler: the profiler to use; default: everything on.

    Raises:
        ValueError: a config that does not exist, ``steps`` below 1.
        RuntimeError: too few steps to time one.
    """
    _check(config, steps)
    profiler = profiler or ThroughputProfiler()
    _train(config, steps, overrides, profiler)
    return profiler.report


def _check(config: str | Path, steps: int) -> None:
    if not Path(config).is_file():
        raise ValueError(f"config {str(config)!r} does not exist; give the path of a YAML file.")
    if steps < 1:
        raise ValueError(f"steps={steps!r} trains nothing; give at least 20 for a steady figure.")


def _train(config: str | Path, steps: int, overrides: Sequence[str], profiler: ThroughputProfiler) -> Any:
    """The Trainer that did it."""
    ProfiledCLI.profiler = profiler
    arguments = ["fit", "--config", str(config), f"--trainer.max_steps={steps}", *overrides]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        ProfiledCLI.folder = folder
        return trainer_command(arguments, cli_class=ProfiledCLI, save_config_callback=None).trainer


def run(args: Sequence[str]) -> int:
    """The command: parse ``args``, profile, print the tables, write the files that were asked for."""
    parser = argparse.ArgumentParser("lightning-perf profile", description=profile_config.__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--config", required=True, help="a YAML file")
    parser.add_argument("--steps", type=int, default=100, help="optimizer steps to train (default 100)")
    parser.add_argument("--html", help="write a self-contained page here")
    parser.add_argument("--json", help="write the report with raw samples here")
    parser.add_argument("--trace", metavar="FOLDER", help="write an operator trace of 3 steps into this folder")
    known, overrides = parser.parse_known_args(args)
    try:
        check_outputs(known.html, known.json)
        profiler = ThroughputProfiler(trace_steps=3 if known.trace else 0, report_dir=known.trace)
        _check(known.config, known.steps)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    # What fails in here is the user's, and keeps its traceback.
    trainer = _train(known.config, known.steps, overrides, profiler)
    if not trainer.is_global_zero:
        return 0  # every rank runs this command, and the first one tells
    if not profiler.has_report:
        parser.error(f"no step was timed in --steps {known.steps}; train at least 20.")
    show(profiler.report, json=known.json, html=known.html)
    return 0
