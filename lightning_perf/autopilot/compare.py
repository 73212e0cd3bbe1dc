"""Compare variants of one training: paired, interleaved, with an interval, and with memory and quality beside speed."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from lightning_perf import measuring
from lightning_perf.autopilot.bystanders import keep_apart
from lightning_perf.autopilot.direction import better, check_mode, direction_of, monitored_modes
from lightning_perf.autopilot.stopwatch import Stopwatch
from lightning_perf.host import is_a, preserved_rng, seed_everything
from lightning_perf.profiling.profile_report import comparison_section
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
)

Factory: TypeAlias = Callable[[], tuple[Any, ...]]
Runner: TypeAlias = Callable[[str, int, int], Run]

_log = logging.getLogger(__name__)
_SEEDING = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")


class BadFactory(ValueError):
    """A variant's function returned something that cannot be fitted: the caller's mistake, not a verdict."""


def compare(
    variants: Mapping[str, Factory],
    *,
    pairs: int = 5,
    target: float | None = None,
    metric: str | None = None,
    mode: str | None = None,
    seed: int = 0,
    title: str = "comparison",
) -> Report:
    """Fit every variant ``pairs`` times, interleaved, and report each beside the first one, which is the baseline.

    Variants of one pair share a seed; their order alternates from pair to pair. All runs share this process, so peak
    memory depends on what ran before; ``lightning-perf compare`` gives every run a process of its own. Checkpoints go into a
    temporary folder, and nothing that the user's own fits have written is overwritten.

    Args:
        variants: name -> function without arguments that returns ``(trainer, module)`` or ``(trainer, module, data)``,
            where data is a DataModule or a training loader. It is called anew for every run.
        pairs: runs per variant; an interval needs at least 3.
        target: also report the seconds until the metric reached this value.
        metric: name that the module logs in validation; by default the one that a checkpoint or early stopping monitors,
            else ``val_acc``, ``val_loss`` or the first that starts with ``val``.
        mode: ``max`` or ``min``; by default what the checkpoint, early stopping or ``ReduceLROnPlateau`` that monitors the
            metric says (in the first variant that has one), else told from the metric's name.
        seed: the first pair's seed.
        title: heading of the report.

    Raises:
        ValueError: fewer than two variants, ``pairs < 1``, an unknown mode, a factory that returns something else, or
            a Trainer, module, callback or strategy that has been in a run before.
        RuntimeError: every run of the baseline failed.

    Example::

        >>> import lightning_perf as lp
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> def fit(callbacks):
        ...     quiet = dict(logger=False, enable_checkpointing=False, enable_model_summary=False, accelerator="cpu")
        ...     trainer = Trainer(max_steps=8, callbacks=callbacks, enable_progress_bar=False, **quiet)
        ...     return trainer, BoringModel()
        >>> report = lp.compare({"plain": lambda: fit([]), "lossless": lambda: fit(lp.lossless())}, pairs=1)
        >>> report.baseline
        'plain'
    """
    _check(variants, pairs, mode)
    first_time = FirstTime()

    def run(variant: str, run_seed: int, position: int) -> Run:
        seed_everything(run_seed)
        trainer, module, data = fresh(variants[variant], f"variant {variant!r}")
        first_time.check(f"variant {variant!r}", trainer, module)
        stopwatch = stopwatch_for(trainer, metric, mode, target)
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            keep_apart(trainer, folder)
            trainer.callbacks.insert(0, stopwatch)
            fit(trainer, module, data)
        return stopwatch.run(variant, run_seed, position)

    ways: dict[str, Any] = {"metric": metric, "mode": mode, "target": target}
    with preserved_rng(), seeding_put_back():
        report = measure(list(variants), run, pairs=pairs, seed=seed, title=title, **ways)
    note = "All runs shared one process: peak memory depends on what ran before."
    return dataclasses.replace(report, notes=(*report.notes, note))


def measure(
    names: list[str],
    run: Runner,
    *,
    pairs: int,
    seed: int = 0,
    title: str = "comparison",
    metric: str | None = None,
    mode: str | None = None,
    target: float | None = None,
    configs: Mapping[str, str] | None = None,
) -> Report:
    """Call ``run(variant, seed, position)`` in interleaved pairs and gather a report; the first name is the baseline.

    A run that raises becomes a verdict in the report; the others go on.

    Raises:
        RuntimeError: every run of the baseline failed.
    """
    runs: list[Run] = []
    with measuring.watch_contention() as contention:
        for index, order in enumerate(measuring.schedule(names, pairs, seed)):
            for name in order:
                _log.info("pair %d of %d: %s", index + 1, pairs, name)
                try:
                    runs.append(run(name, seed + index, len(runs)))
                except BadFactory:
                    raise
                except Exception as error:
                    _log.exception("%s failed with seed %d", name, seed + index)
                    runs.append(Run(name, seed + index, len(runs), error=f"{type(error).__name__}: {error}"))
    failed = [one for one in runs if one.variant == names[0] and one.error is not None]
    if len(failed) == pairs:
        raise RuntimeError(f"every run of the baseline {names[0]!r} failed, first with {failed[0].error}")
    found = metric or _metric_of(runs)
    quantities = [SAMPLES_PER_SECOND, TRAIN_SECONDS]
    if target is not None:
        quantities.append(dataclasses.replace(SECONDS_TO_TARGET, label=f"time to {found or 'target'} {target:g}"))
    in_order = sorted(runs, key=lambda one: names.index(one.variant))
    monitored = next((one.monitored for one in in_order if found in one.monitored), None)
    direction = direction_of(found, mode, monitored)
    quantities += [quality_of(found, direction.mode), PEAK_MEMORY]
    baseline = [one.value("samples_per_second") for one in runs if one.variant == names[0]]
    speeds = [value for value in baseline if value is not None]
    phases = comparison_section(
        {name: [run.phases for run in runs if run.variant == name and run.phases] for name in names}
    )
    notes = [contention.result.sentence()]
    notes.append("No metric was named or found." if found is None else f"Metric: {found}; {direction}.")
    return Report(
        title=title,
        baseline=names[0],
        runs=runs,
        quantities=quantities,
        configs=dict(configs or {}),
        notes=notes,
        sections=() if phases is None else (phases,),
        resolution=measuring.resolution(speeds[0::2][: len(speeds) // 2], speeds[1::2]) if len(speeds) > 3 else None,
    )


def fresh(factory: Factory, what: str) -> tuple[Any, Any, Any]:
    """Trainer, module and data (None without) that the user's function returns.

    Raises:
        BadFactory: it returned something else.
    """
    made = factory()
    if not isinstance(made, tuple) or len(made) not in (2, 3) or not is_a(made[0], "Trainer"):
        raise BadFactory(f"{what} returned {made!r:.200}; it must return (trainer, module) or (trainer, module, data).")
    return made[0], made[1], made[2] if len(made) == 3 else None


class FirstTime:
    """Refuses what has been in a run before: it begins where that run ended.

    An early stopping remembers its best value, a Trainer its epoch, a strategy its optimizers, a precision plugin its scale.
    """

    def __init__(self) -> None:
        self._seen: list[weakref.ref[Any]] = []

    def check(self, what: str, trainer: Any, module: Any) -> None:
        """Look at what ``what`` has returned, the Trainer's callbacks included, and remember it.

        Raises:
            BadFactory: one of them was here before.
        """
        self._seen = [known for known in self._seen if known() is not None]
        if any(self._knows(one) for one in (trainer, module)):
            raise BadFactory(f"{what} returned what has been trained already; build Trainer and module inside it.")
        parts = [*trainer.callbacks, trainer.strategy, trainer.strategy.precision_plugin]
        for part in filter(self._knows, parts):
            raise BadFactory(
                f"{what} returned a Trainer whose {type(part).__name__} has been in a run before, and goes on from there; "
                "build it inside."
            )
        self._seen += [weakref.ref(one) for one in (trainer, module, *parts)]

    def _knows(self, one: Any) -> bool:
        return any(known() is one for known in self._seen)


@contextlib.contextmanager
def seeding_put_back() -> Iterator[None]:
    """Lightning's seeding leaves its seed in the environment, where later processes and loaders find it."""
    before = {name: os.environ.get(name) for name in _SEEDING}
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def fit(trainer: Any, module: Any, data: Any) -> None:
    """Fit on a data module, on a training loader, or on what the module brings itself."""
    keyword = "datamodule" if is_a(data, "LightningDataModule") else "train_dataloaders"
    trainer.fit(module, **({} if data is None else {keyword: data}))


def stopwatch_for(trainer: Any, metric: str | None, mode: str | None, target: float | None = None) -> Stopwatch:
    """A stopwatch for what the Trainer monitors, which is asked now: a race takes those callbacks out."""
    return Stopwatch(metric or monitored_metric(trainer), mode, target, monitored=monitored_modes(trainer))


def monitored_metric(trainer: Any) -> str | None:
    """The metric that the first checkpoint or early stopping of ``trainer`` monitors."""
    for callback in trainer.callbacks:
        name = getattr(callback, "monitor", None)
        if isinstance(name, str):
            return name
    return None


def _metric_of(runs: list[Run]) -> str | None:
    return next((name for run in runs for name in run.curves if name != "loss"), None)


def quality_of(metric: str | None, mode: str | None) -> Quantity:
    """The final metric as a row of a report: in per cent if its name says accuracy."""
    is_accuracy = metric is not None and any(part in ("acc", "accuracy") for part in metric.lower().split("_"))
    base = FINAL_ACCURACY if is_accuracy else FINAL_METRIC
    direction = "lower" if (mode or better(metric)) == "min" else "higher"
    return dataclasses.replace(base, label=f"final {metric or 'metric'}", better=direction)


def _check(variants: Mapping[str, Any], pairs: int, mode: str | None) -> None:
    if len(variants) < 2:
        raise ValueError(f"variants={list(variants)} has nothing to compare; give a baseline and at least one other.")
    if pairs < 1:
        raise ValueError(f"pairs={pairs} runs nothing; give at least 1, or 3 for an interval.")
    check_mode(mode)


def check_outputs(*paths: str | Path | None) -> None:
    """Fail before hours of training rather than after: every path must be writable."""
    from lightning_perf.report import check_writable

    for path in paths:
        if path is not None:
            check_writable(path)
