"""``lightning-perf race``: which optimizer, learning rate and schedule trains a config best."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from lightning_perf.autopilot.compare import check_outputs
from lightning_perf.autopilot.race import race
from lightning_perf.autopilot.race_report import winner
from lightning_perf.cli.outputs import show

_INTERRUPTED = 130


def candidate_of(text: str) -> Any:
    """A name, or arguments of OptimizerFactory in YAML; ``1e-3`` is a number here, which YAML alone takes for a word.

    Example::

        >>> candidate_of("{optimizer: adamw, lr: [1e-3, 0.01]}")
        {'optimizer': 'adamw', 'lr': [0.001, 0.01]}
    """
    return _with_numbers(yaml.safe_load(text))


def _with_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_numbers(item) for item in value]
    return float(value) if isinstance(value, str) and re.fullmatch(r"\d+(\.\d*)?e[+-]?\d+", value) else value


def run(args: Sequence[str]) -> int:
    """The command: parse ``args``, race, print the tables, write the files that were asked for."""
    parser = argparse.ArgumentParser("lightning-perf race", description=race.__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--config", required=True, help="a YAML file that `lightning-perf fit` accepts")
    parser.add_argument("--budget", default="10m", help="time of the race (10m, 1h30m) or '500 steps' per finalist")
    parser.add_argument("--metric", help="name that the module logs in validation")
    parser.add_argument("--mode", choices=("max", "min"), help="which direction of the metric is better")
    parser.add_argument("--target", type=float, help="value of the metric for the time to it")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each finalist (default 3, as an interval needs)")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument(
        "--optimizer",
        action="append",
        type=candidate_of,
        help="a candidate: a name, or arguments of OptimizerFactory such as '{optimizer: adamw, lr: [1e-3, 3e-3]}'; give it "
        "once or more, or leave it out for the defaults",
    )
    parser.add_argument("--folder", help="where runs and configs are kept (default race_NAME)")
    parser.add_argument("--resume", action="store_true", help="go on with the race in the folder")
    parser.add_argument("--yaml", help="write the config of the pick here; it is also FOLDER/winner.yaml")
    parser.add_argument("--html", help="write a self-contained page with the curves here")
    parser.add_argument("--json", help="write the report with raw samples here")
    parser.add_argument("--verbose", action="store_true", help="show the output of every run")
    known, overrides = parser.parse_known_args(args)
    try:
        check_outputs(known.html, known.json, known.yaml)
        report = race(
            known.config,
            optimizers=known.optimizer,
            budget=known.budget,
            metric=known.metric,
            mode=known.mode,
            seeds=known.seeds,
            target=known.target,
            seed=known.seed,
            folder=known.folder,
            resume=known.resume,
            overrides=overrides,
            quiet=not known.verbose,
        )
    except (ValueError, OSError, RuntimeError) as error:
        parser.error(str(error))
    show(report, json=known.json, html=known.html)
    best = Path(known.folder or f"race_{Path(known.config).stem}") / "winner.yaml"
    if not best.exists():
        print(f"The race is not over; go on with it: add --resume{_folder(known.folder)}")
        return _INTERRUPTED
    pick = report.to_yaml(known.yaml, winner(report)) if known.yaml else best
    print(shlex.join(["lightning-perf", "fit", "--config", str(pick), *overrides]))
    return 0


def _folder(named: str | None) -> str:
    return "" if named is None else f" --folder {shlex.quote(named)}"
