"""The race: which optimizer, learning rate and schedule trains this module best, in the time there is."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import hashlib
import logging
import shlex
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lightning_perf import measuring
from lightning_perf._quiet import at_level
from lightning_perf.autopilot import halving
from lightning_perf.autopilot.bystanders import keep_apart
from lightning_perf.autopilot.candidates import BASELINE, OWN, Candidate, config_with, given_candidates, holds_paths
from lightning_perf.autopilot.compare import Factory, FirstTime, fit, fresh, seeding_put_back, stopwatch_for
from lightning_perf.autopilot.contest import Contest, Trial
from lightning_perf.autopilot.direction import check_mode
from lightning_perf.autopilot.halving import Pace
from lightning_perf.autopilot.pacer import STAY_OUT, Pacer
from lightning_perf.autopilot.processes import run_in_process
from lightning_perf.autopilot.race_files import RaceFiles
from lightning_perf.autopilot.race_report import race_report, winner
from lightning_perf.host import preserved_rng, seed_everything
from lightning_perf.host.run_length import interruptible
from lightning_perf.optim.callback import OptimizerFactory
from lightning_perf.report import Report, Run

_TRAINERS = ("lightning.pytorch", "pytorch_lightning")


def race(
    config_or_factory: str | Path | Factory,
    *,
    optimizers: Sequence[str | Mapping[str, Any]] | None = None,
    budget: str | float = "10m",
    metric: str | None = None,
    mode: str | None = None,
    seeds: int = 3,
    target: float | None = None,
    seed: int = 0,
    folder: str | Path | None = None,
    resume: bool = False,
    overrides: Sequence[str] = (),
    quiet: bool = True,
) -> Report:
    """Race optimizers, learning rates and schedules against the module's own optimizer, by successive halving.

    Every candidate is a callback beside the user's own Trainer settings; the module is not touched, and trains as it is in
    every rung. All run on one seed and data order; a third goes on to a rung three times as long, by the metric
    of the last validation; the finalists run with several seeds. A candidate that fails or diverges is a verdict. Ctrl-C
    ends the race with a report of what is known. Checkpoints, early stopping and progress bars of the Trainer stay out.

    A schedule with an end gets the length of its rung, so that every run is a whole training of that length.

    Args:
        config_or_factory: path of a YAML file that ``lightning-perf fit --config`` accepts, every run then having a process
            of its own; or a function without arguments that returns ``(trainer, module)`` or ``(trainer, module, data)``,
            all of them new at every call.
        optimizers: names, or mappings of arguments of :class:`OptimizerFactory`, in which lists of ``lr``, ``schedule``,
            ``weight_decay`` and ``warmup`` are a grid. By default a dozen and a half, scaled down if the module's own
            learning rate is that of fine-tuning.
        budget: time for the whole race, such as ``"10m"`` or a number of seconds, which decides how many of the default
            candidates start; or the length of a finalist, such as ``"500 steps"``.
        metric: name that the module logs in validation; by default found as :func:`compare` finds it.
        mode: ``max`` or ``min``; by default what the config's or function's own checkpoint, early stopping or
            ``ReduceLROnPlateau`` for the metric says, else told from its name.
        seeds: runs of each finalist; an interval needs at least 3.
        target: value of the metric for the time to it; by default the worst that the module's own optimizer ends with.
        seed: the first seed.
        folder: where runs and configs are kept; by default ``race_NAME`` for a config, nowhere for a function.
        resume: go on with the race in ``folder``.
        overrides: further arguments for every run of a config, such as ``--trainer.limit_val_batches=10``.
        quiet: keep the lines of Trainers and callbacks to warnings, those of processes to error messages.

    Raises:
        ValueError: a budget that is none or too small, an unknown candidate, no metric, a folder that holds a race, a
            function that returns something else or the same objects twice.
        RuntimeError: the module's own optimizer cannot train.

    Example::

        >>> import lightning_perf as lp
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> class Model(BoringModel):
        ...     def validation_step(self, batch, batch_idx):
        ...         self.log("val_loss", self.step(batch))
        >>> def training():
        ...     quiet = dict(logger=False, enable_checkpointing=False, enable_model_summary=False, accelerator="cpu")
        ...     return Trainer(max_epochs=1, enable_progress_bar=False, **quiet), Model()
        >>> report = lp.race(training, optimizers=[{"optimizer": "sgd", "lr": 0.01}], budget="8 steps", seeds=1)
        >>> report.variants
        ('own optimizer', 'sgd lr=0.01')
    """
    asked = halving.parse_budget(budget)
    given = None if optimizers is None else given_candidates(optimizers)
    config = config_or_factory if isinstance(config_or_factory, (str, Path)) else None
    _check(config, seeds=seeds, mode=mode, overrides=overrides, resume=resume, folder=folder)
    settings = {
        "optimizers": None if given is None else [dict(one.arguments or {}) for one in given],
        "budget": str(budget),
        "metric": metric,
        "mode": mode,
        "seeds": seeds,
        "seed": seed,
        "config": None if config is None else hashlib.sha256(Path(config).read_bytes()).hexdigest(),
        "overrides": list(overrides),
    }
    if config is not None and folder is None:
        folder = f"race_{Path(config).stem}"
    files = RaceFiles(folder, settings, resume=resume)
    if config is not None:
        trial = _in_processes(config, files, mode, overrides, quiet)
    else:
        trial = _in_process(config_or_factory, mode)  # type: ignore[arg-type]
    interrupted = False
    hushed = at_level(logging.WARNING, *_TRAINERS) if quiet else contextlib.nullcontext()
    with _bar() as tell, measuring.watch_contention() as contention, seeding_put_back(), hushed:
        options = {"seeds": seeds, "seed": seed, "metric": metric, "mode": mode}
        contest = Contest(trial, files, asked, given, tell=tell, **options)  # pyright: ignore[reportArgumentType]
        try:
            contest.go()
        except KeyboardInterrupt:
            if contest.probe is None:
                raise
            interrupted = True
    notes = [contention.result.sentence(), _where(config, files, overrides)]
    title = f"race of {len(contest.candidates)} candidates" + ("" if config is None else f", {Path(config).name}")
    report = race_report(contest, title=title, target=target, notes=notes, interrupted=interrupted)
    return report if config is None else _with_configs(report, config, contest, files, overrides)


def _check(
    config: str | Path | None, *, seeds: int, mode: str | None, overrides: Any, resume: bool, folder: Any
) -> None:
    if seeds < 1:
        raise ValueError(f"seeds={seeds} runs no finalist; give at least 1, or 3 for an interval.")
    check_mode(mode)
    if config is None:
        if overrides:
            raise ValueError(f"overrides={list(overrides)} are for a config; a function sets its own Trainer.")
        if resume and folder is None:
            raise ValueError(
                "resume=True needs the folder of the race; a function's race is kept only where one is named."
            )
        return
    if not Path(config).is_file():
        raise ValueError(f"config {str(config)!r} does not exist; give the path of a YAML file.")
    replaced = [word for word in overrides if word.startswith("--trainer.callbacks=")]
    if replaced:
        raise ValueError(
            f"overrides={replaced} would replace the candidate's callback; append with --trainer.callbacks+=."
        )


def _in_process(factory: Factory, mode: str | None) -> Trial:
    """Runs in this process, on what the user's function returns."""
    first_time = FirstTime()

    def run(candidate: Candidate, seed: int, position: int, pace: Pace, metric: str | None, folder: str) -> Run:
        seed_everything(seed)
        trainer, module, data = fresh(factory, "the function")
        stopwatch, pacer = stopwatch_for(trainer, metric, mode), Pacer(pace)
        keep_apart(trainer, folder, STAY_OUT)
        callback = candidate.factory()
        if callback is not None:
            trainer.callbacks[:] = [one for one in trainer.callbacks if not isinstance(one, OptimizerFactory)]
        first_time.check("the function", trainer, module)
        if callback is not None:
            trainer.callbacks.append(callback)
        trainer.callbacks[:0] = [stopwatch, pacer]
        with interruptible(trainer):
            fit(trainer, module, data)
        said = tuple(line for one in trainer.callbacks for line in getattr(one, "messages", ()))
        return pacer.finished(dataclasses.replace(stopwatch.run(candidate.name, seed, position), notes=said))

    def run_and_forget(candidate: Candidate, seed: int, position: int, pace: Pace, metric: str | None) -> Run:
        with preserved_rng(), tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            try:
                return run(candidate, seed, position, pace, metric, folder)
            finally:
                gc.collect()  # Trainer and module hold each other; the next run's memory is not to start with theirs

    return run_and_forget


def _in_processes(
    config: str | Path, files: RaceFiles, mode: str | None, overrides: Sequence[str], quiet: bool
) -> Trial:
    """Runs in processes of their own: the user's config as it is, and for a candidate the config that is its result."""

    def run(candidate: Candidate, seed: int, position: int, pace: Pace, metric: str | None) -> Run:
        own = candidate.arguments is None
        path = Path(config) if own else files.keep_config(candidate, config_with(config, candidate))
        job = {
            "args": ["--config", str(path), *overrides],
            "variant": candidate.name,
            "seed": seed,
            "position": position,
            "metric": metric,
            "mode": mode,
            "target": None,
            "pace": dataclasses.asdict(pace),
        }
        return run_in_process(job, quiet=quiet)

    return run


def _with_configs(
    report: Report, config: str | Path, contest: Contest, files: RaceFiles, overrides: Sequence[str]
) -> Report:
    """The report with the config of each variant in it, such that it can be copied; the winner's is ``winner.yaml``."""
    by_name = {one.name: one for one in contest.candidates}
    configs = {BASELINE: str(files.keep_config(OWN, config_with(config, OWN)) if holds_paths(config) else config)}
    for name in report.variants:
        if name != BASELINE:
            configs[name] = str(files.keep_config(by_name[name], config_with(config, by_name[name])))
    if contest.over and files.folder is not None:
        text = Path(configs[winner(report)]).read_text(encoding="utf-8")
        head = f"# It raced with these arguments beside it, which are not in here: {shlex.join(overrides)}\n"
        (files.folder / "winner.yaml").write_text(head + text if overrides else text, encoding="utf-8")
    return dataclasses.replace(report, configs=configs)


def _where(config: str | Path | None, files: RaceFiles, overrides: Sequence[str]) -> str:
    kept = "" if files.folder is None else f" Every run is kept in {files.folder}."
    if config is None:
        return f"All runs shared one process: peak memory depends on what ran before.{kept}"
    beside = f" All ran with {shlex.join(overrides)}." if overrides else ""
    return (
        "Every run had its own process; peak memory is resident memory above its value when the fit was set up."
        f"{kept}{beside}"
    )


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[int, int, str], None]]:
    """A progress bar on a terminal; nothing elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda done, total, text: None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("race", total=None)
        yield lambda done, total, text: progress.update(task, completed=done, total=total, description=text)
