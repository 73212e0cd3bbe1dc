"""Every YAML of a recipe beside its baseline: speed, time to target, memory, metric, size, latency; into its README.

    python -m benchmarks.recipe_tables tabular
    python -m benchmarks.recipe_tables image_classification --trainer.limit_train_batches=50   # a short look
    python -m benchmarks.recipe_tables tabular --table                                         # the table of the last run

Three seeds, interleaved, every run in a process of its own. The target is the metric that all baseline runs end at or
beyond: the worst of their ends. Further words are overrides of every run, and then nothing is written.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.goals import RESULTS
from benchmarks.recipe_latency import SUFFIX, latencies
from lightning_perf.autopilot.compare import measure, quality_of
from lightning_perf.autopilot.direction import better
from lightning_perf.autopilot.halving import seconds_to
from lightning_perf.autopilot.processes import run_in_process
from lightning_perf.report import PEAK_MEMORY, SAMPLES_PER_SECOND, SECONDS_TO_TARGET, Quantity, Report, Run, json_text
from lightning_perf.report.rows import comparison_text, facts

RECIPES = Path("recipes")
WORKER = "benchmarks.recipe_worker"
SEEDS = 3
BASELINE = "baseline"
ORDER = (BASELINE, "lossless", "fast", "auto", "qat", "pruned", "channels", "ddp")
START = "<!-- measured: written by `python -m benchmarks.recipe_tables` -->\n"
END = "<!-- end of measured -->"
QUIET = (
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.enable_checkpointing=false",
    "--trainer.logger=false",
)
SIZE = Quantity("file_bytes", "size", "kB", better="lower", digits=0, scale=1e-3)
LATENCY = Quantity("latency_seconds", "latency", "ms", better="lower", digits=3, scale=1e3)
WORDS = (
    "Medians of {seeds} seeds; every run in a process of its own, interleaved. Behind a value stands how many times better "
    "than the baseline it is (above 1 is better), or by how much the metric differs, over pairs of equal seed, with the "
    "{level:.0%} interval. The target is where the worst baseline run ended. Memory is what one process takes above its "
    "start. Size is that of the exported file, deflated; latency that of a call with one sample on one "
    "thread{how}, all files timed in turns in one process; both of the first seed alone."
)


@dataclass(frozen=True)
class Setting:
    """How a recipe is measured: its metric (None: the one that compare finds), and what makes it end within minutes."""

    metric: str | None = None
    overrides: tuple[str, ...] = ()


SETTINGS = {
    "image_classification": Setting(
        "val_acc", ("--trainer.max_epochs=2", "--trainer.limit_train_batches=40", "--trainer.limit_val_batches=20")
    ),
    "language_model": Setting(
        "val_loss", ("--trainer.max_epochs=2", "--trainer.limit_train_batches=60", "--trainer.limit_val_batches=20")
    ),
    "molecules": Setting("val_mae", ("--trainer.max_epochs=10",)),
    "sequences": Setting("val_acc"),
    "speech": Setting("val_acc", ("--trainer.max_epochs=8",)),
    "tabular": Setting("val_acc"),
    "translation": Setting("val_loss", ("--trainer.max_epochs=8", "--trainer.check_val_every_n_epoch=2")),
}


def measured(
    name: str, keep: Path, seeds: int = SEEDS, overrides: Sequence[str] = (), only: Sequence[str] = ()
) -> Report:
    """Fit every YAML of a recipe ``seeds`` times; ``only`` names those to fit beside the baseline.

    Every run is a file in the folder ``keep`` at once, and what has a file is not run again.

    Raises:
        ValueError: no such recipe.
    """
    folder = RECIPES / name
    if not (folder / f"{BASELINE}.yaml").is_file():
        known = sorted(path.parent.name for path in RECIPES.glob(f"*/{BASELINE}.yaml"))
        raise ValueError(f"{name!r} is no recipe; the recipes are {', '.join(known)}.")
    setting = SETTINGS.get(name, Setting())
    configs = {path.stem: path for path in folder.glob("*.yaml") if not only or path.stem in (BASELINE, *only)}
    names = sorted(configs, key=_place)

    def run(variant: str, seed: int, position: int) -> Run:
        path = keep / f"{variant}_{seed}.json"
        if path.exists():
            return Run(**json_text.loads(path.read_text(encoding="utf-8")))
        keep.mkdir(parents=True, exist_ok=True)
        made = fit(variant, seed, position)
        path.write_text(json_text.dumps(dataclasses.asdict(made)), encoding="utf-8")
        return made

    def fit(variant: str, seed: int, position: int) -> Run:
        job = {
            "args": ["--config", str(configs[variant]), *QUIET, *setting.overrides, *overrides],
            "variant": variant,
            "seed": seed,
            "position": position,
            "metric": setting.metric,
            "mode": None,
            "target": None,
            "artifact": str((keep / f"{variant}{SUFFIX}").absolute()),
        }
        return run_in_process(job, worker=WORKER)

    report = measure(names, run, pairs=seeds, title=f"recipe {name}", metric=setting.metric, configs=_paths(configs))
    in_turns = latencies(keep)
    runs = [
        dataclasses.replace(run, quantities={**run.quantities, LATENCY.key: in_turns[run.variant]})
        if run.variant in in_turns and run.value(LATENCY.key) is not None
        else run
        for run in report.runs
    ]
    return with_target(dataclasses.replace(report, runs=runs), setting.metric or _found(report))


def _place(stem: str) -> tuple[int, str]:
    """The order of the files in a table: the known ones from the least change to the largest, others behind."""
    return (ORDER.index(stem) if stem in ORDER else len(ORDER), stem)


def _paths(configs: dict[str, Path]) -> dict[str, str]:
    return {name: path.as_posix() for name, path in configs.items()}


def _found(report: Report) -> str | None:
    return next((name for run in report.runs for name in run.curves if name != "loss"), None)


def with_target(report: Report, metric: str | None) -> Report:
    """The report with the time to where the worst baseline run ended, and with all that the table shows."""
    ends = [run.value("final_metric") for run in report.runs_of(report.baseline)]
    found = [end for end in ends if end is not None]
    mode = better(metric)
    target = (min(found) if mode == "max" else max(found)) if found else math.nan
    runs = []
    for run in report.runs:
        at = seconds_to(run.curves.get(metric or "", ()), target, mode)
        why = {"seconds_to_target": "not reached" if run.error is None else run.error}
        # Curves stay, batch by batch samples do not: they are many, and their median is kept.
        quantities = {**run.quantities, "seconds_to_target": at}
        runs.append(dataclasses.replace(run, quantities=quantities, missing={**run.missing, **why}, samples={}))
    quality = quality_of(metric, None)
    time = dataclasses.replace(SECONDS_TO_TARGET, label=f"time to {metric} {quality.text(target)}")
    quantities = (SAMPLES_PER_SECOND, time, PEAK_MEMORY, quality, SIZE, LATENCY)
    return dataclasses.replace(report, runs=runs, quantities=quantities)


def table(report: Report, name: str) -> str:
    """The table for the README: a line per YAML, the baseline first."""
    heads = ["file", *(quantity.label for quantity in report.quantities)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for variant in sorted(report.variants, key=_place):
        cells = [_cell(report, quantity, variant) for quantity in report.quantities]
        lines.append(f"| {' | '.join([f'`{variant}.yaml`', *cells])} |")
    for text in dict.fromkeys(_why_none(report, quantity) for quantity in report.quantities):
        lines += ["", text] if text else []
    seeds = len(report.runs_of(report.baseline))
    ways = sorted(
        {note.partition(" as ")[2] for run in report.runs for note in run.notes if note.startswith("deployed as ")}
    )
    lines += ["", WORDS.format(seeds=seeds, level=_level(report), how=f" ({', '.join(ways)})" if ways else "")]
    shortened = SETTINGS.get(name, Setting()).overrides
    if shortened:
        lines[-1] += f" Runs are shortened: {' '.join(f'`{word}`' for word in shortened)}."
    described = facts(report)
    raw = f"`benchmarks/results/recipe_{name}.json`"
    lines += ["", f"{described['machine']}; {described['versions']}. Raw samples: {raw}."]
    return "\n".join(lines)


def _why_none(report: Report, quantity: Quantity) -> str:
    """What keeps the baseline from having a value, as a sentence; nothing if it has one."""
    runs = report.runs_of(report.baseline)
    if any(run.value(quantity.key) is not None for run in runs):
        return ""
    why = runs[0].why_missing(quantity.key)
    return f"None: {why}" if ": " in why else ""


def _level(report: Report) -> float:
    """How often the intervals of the speeds hold the truth; none with fewer than two pairs."""
    found = (report.comparison(SAMPLES_PER_SECOND.key, variant) for variant in report.variants)
    return max((interval.level for interval in found if interval is not None), default=0.0)


def _cell(report: Report, quantity: Quantity, variant: str) -> str:
    values = [value for value in report.values(quantity.key, variant) if value is not None]
    runs = report.runs_of(variant)
    if not values:
        why = runs[0].why_missing(quantity.key)
        return "failed" if runs[0].error is not None else "none" if ": " in why else why
    shown = quantity.text(statistics.median(values))
    is_deployed = quantity.key in (SIZE.key, LATENCY.key)
    if len(values) < len(runs) and not is_deployed:
        shown += f" in {len(values)} of {len(runs)}"
    interval = report.comparison(quantity.key, variant)
    if interval is not None and is_deployed:
        return f"{shown}, {interval.estimate:.2f}x"
    return shown if interval is None else f"{shown}, {comparison_text(quantity, interval).partition(' (')[0]}"


def into_readme(page: Path, text: str) -> None:
    """Put the table between the two marks of a page; where it has none yet, in front of its options or at its end."""
    whole = page.read_text(encoding="utf-8")
    if START not in whole:
        above, options, below = whole.partition("## Options\n")
        whole = f"{above.rstrip()}\n\n## Measured\n\n{START}\n{END}\n" + (f"\n{options}{below}" if options else "")
    before, rest = whole.split(START)
    page.write_text(f"{before}{START}\n{text}\n\n{END}{rest.split(END, 1)[1]}", encoding="utf-8")


def main(args: Sequence[str] | None = None) -> None:
    """Measure a recipe and write its table; a short look (with overrides, fewer seeds or files) only prints."""
    parser = argparse.ArgumentParser("python -m benchmarks.recipe_tables")
    parser.add_argument("name", help="of a recipe")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--only", nargs="+", default=[], help="files beside the baseline, without .yaml")
    parser.add_argument("--keep", type=Path, help="a folder for runs, so that what was stopped goes on where it was")
    parser.add_argument("--table", action="store_true", help="write the table of the result that there is")
    known, overrides = parser.parse_known_args(args)
    path = RESULTS / f"recipe_{known.name}.json"
    if known.table:
        report = Report.from_json(path)
    else:
        try:
            with tempfile.TemporaryDirectory() as folder:
                report = measured(known.name, known.keep or Path(folder), known.seeds, overrides, known.only)
        except ValueError as error:
            parser.error(str(error))
    print(report.table())
    text = table(report, known.name)
    print(text)
    if overrides or known.only or known.seeds != SEEDS:
        print("a short look: nothing is written.")
        return
    if not known.table:
        report.to_json(path)
    into_readme(RECIPES / known.name / "README.md", text)


if __name__ == "__main__":
    main()
