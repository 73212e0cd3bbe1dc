"""Time to a target and final metric of ``OptimizerFactory("auto")`` on four tasks, against constant and scheduled AdamW.

    python -m benchmarks.time_to_target             # runs what has no result file yet, task by task; may be stopped
    python -m benchmarks.time_to_target --table     # the table of what there is

Variants, frozen beforehand: ``auto`` with its defaults; Adam at 3e-4, 1e-3 and 3e-3, constant; AdamW with warm-up and
linear decay at 1e-3, 3e-3 and 1e-2. All have torch's fused step where there is one. Five seeds, interleaved; a file per run.

Goals. Against the best constant Adam (the smallest median time to the target): <= 0.75x the seconds to 85 % on ``fashion``;
on the other three never > 1.1x, median < 0.9x. Against the best scheduled AdamW (by mean final metric): final metric
within seed noise or better on all four. A run that misses the target counts as if it reached it at its end if it is the
baseline's, and as never if it is ``auto``'s: both in the baseline's favour.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import math
import statistics
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import lightning_perf as lp
from benchmarks.goals import RESULTS, quiet_trainer
from benchmarks.time_to_target_tasks import TASKS, Task
from lightning_perf import measuring
from lightning_perf.autopilot.halving import seconds_to
from lightning_perf.autopilot.stopwatch import Stopwatch
from lightning_perf.host import seed_everything
from lightning_perf.report import (
    FINAL_ACCURACY,
    FINAL_METRIC,
    PEAK_MEMORY,
    SAMPLES_PER_SECOND,
    SECONDS_TO_TARGET,
    TRAIN_SECONDS,
    Quantity,
    Report,
    Run,
    json_text,
)

FOLDER = RESULTS / "time_to_target"
SEEDS = 5
WARM_UP_STEPS = 20
CONSTANT = {
    f"adam {lr:g} constant": {"optimizer": "adam", "lr": lr, "schedule": "constant"} for lr in (3e-4, 1e-3, 3e-3)
}
SCHEDULED = {
    f"adamw {lr:g} warmup_linear": {"optimizer": "adamw", "lr": lr, "schedule": "warmup_linear"}
    for lr in (1e-3, 3e-3, 1e-2)
}
VARIANTS: dict[str, dict[str, Any]] = {"auto": {"optimizer": "auto"}, **CONSTANT, **SCHEDULED}
STEPS_TO_TARGET = Quantity("steps_to_target", "steps to target", "steps", better="lower", digits=0)


def fit(task: Task, variant: str, seed: int, steps: int) -> Run:
    """One run on a fresh module."""
    torch.set_num_threads(task.threads)
    seed_everything(seed)
    module, data = task.make()
    watch = Stopwatch(task.metric, task.mode)
    settings = {
        "max_epochs": -1,
        "max_steps": steps,
        "val_check_interval": min(task.every, steps),
        "check_val_every_n_epoch": None,
        "num_sanity_val_steps": 0,
        **dict(task.trainer),
    }
    trainer = quiet_trainer([watch, lp.OptimizerFactory(**VARIANTS[variant])], **settings)
    trainer.fit(module, datamodule=data)
    return watch.run(variant, seed, 0)


def path_of(folder: Path, task: Task, variant: str, seed: int) -> Path:
    """The file of one run."""
    return folder / task.name / f"{variant.replace(' ', '_')}_seed{seed}.json"


def run_missing(task: Task, folder: Path, seeds: int, steps: int | None = None) -> None:
    """Run what has no file, in interleaved rounds, after one run that warms the process up and is thrown away."""
    length = steps or task.steps
    warm = False
    for seed, names in enumerate(measuring.schedule(VARIANTS, seeds)):
        for name in names:
            path = path_of(folder, task, name, seed)
            if path.exists():
                continue
            if not warm:
                fit(task, name, seed, min(length, WARM_UP_STEPS))
                warm = True
            with measuring.watch_contention() as contention:
                run = fit(task, name, seed, length)
            run = dataclasses.replace(run, samples={}, notes=(contention.result.sentence(),))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json_text.dumps({"written": time.time(), **dataclasses.asdict(run)}), encoding="utf-8")
            print(
                f"{task.name}, {name}, seed {seed}: {run.value('final_metric')}, {run.value('train_seconds'):.1f} s",
                flush=True,
            )


def read(task: Task, folder: Path) -> dict[str, dict[int, Run]]:
    """The runs that have a file, by variant and seed."""
    found: dict[str, dict[int, Run]] = {name: {} for name in VARIANTS}
    for name, runs in found.items():
        for seed in range(100):
            path = path_of(folder, task, name, seed)
            if path.exists():
                data = json_text.loads(path.read_text(encoding="utf-8"))
                data.pop("written")
                runs[seed] = Run(**data)
    return found


def ends(runs: dict[int, Run]) -> list[float]:
    """Final metrics."""
    return [value for run in runs.values() if (value := run.value("final_metric")) is not None]


def best(scores: dict[str, float], mode: str) -> str | None:
    """The name with the best finite score."""
    finite = {name: score for name, score in scores.items() if math.isfinite(score)}
    return (max if mode == "max" else min)(finite, key=lambda name: finite[name]) if finite else None


def mean_ends(found: dict[str, dict[int, Run]], names: Sequence[str]) -> dict[str, float]:
    """Mean final metric of each variant that has a run."""
    return {name: statistics.fmean(ends(found[name])) for name in names if ends(found[name])}


def target_of(task: Task, found: dict[str, dict[int, Run]]) -> float | None:
    """The task's target, or the worst end of the constant Adam that ends best."""
    if task.target is not None:
        return task.target
    name = best(mean_ends(found, list(CONSTANT)), task.mode)
    if name is None:
        return None
    return min(ends(found[name])) if task.mode == "max" else max(ends(found[name]))


def reached(run: Run, task: Task, target: float) -> float | None:
    """Seconds to the target."""
    return seconds_to(run.curves.get(task.metric, ()), target, task.mode)


def time_ratio(ours: float | None, theirs: float | None, their_end: float) -> float:
    """Our seconds over theirs; a miss of theirs counts as their end, a miss of ours as never.

    Example::

        >>> time_ratio(5.0, 10.0, 20.0), time_ratio(5.0, None, 20.0), time_ratio(None, 10.0, 20.0)
        (0.5, 0.25, inf)
    """
    return math.inf if ours is None else ours / (their_end if theirs is None else theirs)


def fastest(task: Task, found: dict[str, dict[int, Run]], target: float) -> str | None:
    """The constant Adam with the smallest median time to the target, a miss counting as twice the run."""
    medians = {}
    for name in CONSTANT:
        times = [reached(run, task, target) or 2 * (run.value("train_seconds") or 0) for run in found[name].values()]
        if times:
            medians[name] = statistics.median(times)
    return best(medians, "min")


def ratios(task: Task, found: dict[str, dict[int, Run]], name: str, target: float) -> list[float]:
    """``auto`` over the variant ``name``, per seed that both have run."""
    pairs = [(found["auto"][seed], found[name][seed]) for seed in sorted(found["auto"].keys() & found[name].keys())]
    return [
        time_ratio(reached(ours, task, target), reached(theirs, task, target), theirs.value("train_seconds") or 0)
        for ours, theirs in pairs
    ]


def report_of(task: Task, found: dict[str, dict[int, Run]], target: float, names: Sequence[str]) -> Report:
    """The runs of ``names`` as a report, the first one the baseline."""
    runs = []
    for name in names:
        for run in found[name].values():
            at = reached(run, task, target)
            points = run.curves.get(task.metric, ())
            index = next((i for i, point in enumerate(points) if point[0] == at), None)
            quantities = {
                "seconds_to_target": at,
                "steps_to_target": None if index is None else (index + 1) * task.every,
            }
            missing = {**run.missing, "seconds_to_target": "not reached", "steps_to_target": "not reached"}
            runs.append(
                dataclasses.replace(run, quantities={**run.quantities, **quantities}, missing=missing, notes=())
            )
    base = FINAL_ACCURACY if task.metric.endswith("acc") else FINAL_METRIC
    quality = dataclasses.replace(
        base, label=f"final {task.metric}", better="higher" if task.mode == "max" else "lower"
    )
    seconds = dataclasses.replace(SECONDS_TO_TARGET, label=f"time to {task.metric} {target:.4g}")
    rows = [seconds, STEPS_TO_TARGET, quality, SAMPLES_PER_SECOND, TRAIN_SECONDS, PEAK_MEMORY]
    busy = sum(
        not note.startswith("The machine was quiet")
        for runs_ in found.values()
        for run in runs_.values()
        for note in run.notes
    )
    notes = [
        f"{task.steps} steps, a validation every {task.every}, {task.threads} threads; one process, interleaved (peak "
        "memory depends on the runs before).",
        f"During {busy} of {sum(map(len, found.values()))} runs somebody else wanted the machine.",
    ]
    return Report(f"time to target, {task.name}", names[0], runs, rows, notes=notes)


def table(folder: Path) -> None:
    """Print, per task, the report and how the goals stand; then the goals over the three other tasks."""
    others: dict[str, float] = {}
    for task in TASKS.values():
        found = read(task, folder)
        target = target_of(task, found)
        constant = None if target is None else fastest(task, found, target)
        tuned = best(mean_ends(found, list(SCHEDULED)), task.mode)
        if target is None or constant is None or tuned is None or not found["auto"]:
            print(f"{task.name}: {sum(map(len, found.values()))} runs, too few for a table.\n")
            continue
        report = report_of(task, found, target, [constant, "auto", tuned])
        print(report.table())
        report.to_json(folder / f"{task.name}.json")
        against = ratios(task, found, constant, target)
        middle = statistics.median(against)
        shown = ", ".join(f"{ratio:.2f}" for ratio in against)
        goal = 0.75 if task.name == "fashion" else 1.1
        print(
            f"GOAL time, {task.name}: auto at <= {goal}x of {constant}: {middle:.2f}x [{shown}]: {_met(middle <= goal)}"
        )
        _print_quality(task, found, tuned)
        if task.name != "fashion":
            others[task.name] = middle
    if others:
        middle = statistics.median(others.values())
        shown = ", ".join(f"{name} {ratio:.2f}x" for name, ratio in others.items())
        print(f"GOAL time, median of {len(others)} other tasks < 0.9x: {middle:.2f}x ({shown}): {_met(middle < 0.9)}")


def _print_quality(task: Task, found: dict[str, dict[int, Run]], tuned: str) -> None:
    seeds = sorted(found["auto"].keys() & found[tuned].keys())
    values = [[found[name][seed].value("final_metric") for seed in seeds] for name in ("auto", tuned)]
    pairs = [(a, b) for a, b in zip(*values, strict=True) if a is not None and b is not None]
    difference = measuring.paired_difference([a for a, _ in pairs], [b for _, b in pairs])
    good = difference.high >= 0 if task.mode == "max" else difference.low <= 0
    text = difference.text(digits=4, unit="", signed=True)
    print(f"GOAL quality, {task.name}: auto within seed noise of {tuned} or better: {text}: {_met(good)}\n")


def _met(good: bool) -> str:
    return "met" if good else "NOT met"


def main(args: Sequence[str] | None = None) -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser("python -m benchmarks.time_to_target")
    parser.add_argument("--table", action="store_true", help="only print what there is")
    parser.add_argument("--task", choices=tuple(TASKS), action="append", help="only this one; may be given twice")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--steps", type=int, help="shorter runs, for a look; needs --folder")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the result files are")
    known = parser.parse_args(args)
    if known.steps is not None and known.folder == FOLDER:
        parser.error(f"--steps {known.steps}: shortened runs are no results; name another --folder.")
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    if not known.table:
        for name in known.task or TASKS:
            run_missing(TASKS[name], known.folder, known.seeds, known.steps)
    table(known.folder)


if __name__ == "__main__":
    main()
