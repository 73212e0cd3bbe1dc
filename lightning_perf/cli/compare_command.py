"""``lightning-perf compare``: every run of every config in a process of its own, interleaved."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from lightning_perf.autopilot.compare import check_outputs, measure
from lightning_perf.autopilot.processes import run_in_process
from lightning_perf.cli.outputs import show
from lightning_perf.report import Report, Run


def compare_configs(
    configs: Sequence[str | Path],
    *,
    pairs: int = 5,
    target: float | None = None,
    metric: str | None = None,
    mode: str | None = None,
    seed: int = 0,
    overrides: Sequence[str] = (),
    title: str | None = None,
    quiet: bool = False,
    phases: bool = False,
) -> Report:
    """Fit LightningCLI configs side by side, each run in a fresh process; the first config is the baseline.

    Args:
        configs: paths of YAML files that ``lightning-perf fit --config`` accepts; variants are named by file.
        pairs: runs per config; an interval needs at least 3.
        target: also report the seconds until the metric reached this value.
        metric: name of the metric; see :func:`lightning_perf.compare`.
        mode: ``max`` or ``min``; by default what monitors the metric in the first config that has it, else told from its
            name.
        seed: the first pair's seed; overrides ``seed_everything`` of the configs.
        overrides: further arguments for every run, such as ``--trainer.max_epochs=1``.
        title: heading of the report.
        quiet: keep the output of the runs to error messages.
        phases: also show where a step's time goes, by a profiler beside every run.

    Raises:
        ValueError: fewer than two configs, one that does not exist, two of the same name, ``pairs < 1``.
        RuntimeError: every run of the baseline failed.
    """
    named = _named(configs)
    if pairs < 1:
        raise ValueError(f"pairs={pairs} runs nothing; give at least 1, or 3 for an interval.")

    def run(variant: str, run_seed: int, position: int) -> Run:
        job = {
            "args": ["--config", str(named[variant]), *overrides],
            "variant": variant,
            "seed": run_seed,
            "position": position,
            "metric": metric,
            "mode": mode,
            "target": target,
            "phases": phases,
        }
        return run_in_process(job, quiet=quiet)

    report = measure(
        list(named),
        run,
        pairs=pairs,
        seed=seed,
        title=title or " vs ".join(reversed(list(named))),
        metric=metric,
        mode=mode,
        target=target,
        configs={name: str(path) for name, path in named.items()},
    )
    notes = [
        "Every run had a process of its own; peak memory is resident memory above its value when the fit was set up."
    ]
    return dataclasses.replace(report, notes=(*report.notes, *notes))


def _named(configs: Sequence[str | Path]) -> dict[str, Path]:
    paths = [Path(config) for config in configs]
    if len(paths) < 2:
        raise ValueError(f"{len(paths)} configs leave nothing to compare; give a baseline and at least one other.")
    for path in paths:
        if not path.is_file():
            raise ValueError(f"config {str(path)!r} does not exist; give the path of a YAML file.")
    names = [path.stem for path in paths]
    if len(set(names)) < len(names):
        names = [f"{path.parent.name}/{path.stem}" for path in paths]
    if len(set(names)) < len(names):
        raise ValueError(f"configs {[str(path) for path in paths]} have the same names; rename one.")
    return dict(zip(names, paths, strict=True))


def run(args: Sequence[str]) -> int:
    """The command: parse ``args``, compare, print the table, write the files that were asked for."""
    parser = argparse.ArgumentParser("lightning-perf compare", description=compare_configs.__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--config", action="append", required=True, help="a YAML file; give it twice or more")
    parser.add_argument("--pairs", type=int, default=5, help="runs per config (default 5; at least 3 for an interval)")
    parser.add_argument("--target", type=float, help="also report seconds until the metric reached this value")
    parser.add_argument("--metric", help="name that the module logs in validation")
    parser.add_argument("--mode", choices=("max", "min"), help="which direction of the metric is better")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first pair")
    parser.add_argument("--phases", action="store_true", help="also show where a step's time goes")
    parser.add_argument("--html", help="write a self-contained page here")
    parser.add_argument("--json", help="write the report with raw samples here")
    parser.add_argument("--verbose", action="store_true", help="show the output of every run")
    known, overrides = parser.parse_known_args(args)
    try:
        check_outputs(known.html, known.json)
        report = compare_configs(
            known.config,
            pairs=known.pairs,
            target=known.target,
            metric=known.metric,
            mode=known.mode,
            seed=known.seed,
            overrides=overrides,
            quiet=not known.verbose,
            phases=known.phases,
        )
    except (ValueError, OSError, RuntimeError) as error:
        parser.error(str(error))
    show(report, json=known.json, html=known.html)
    return 0
