"""One fit of a wild module, and everything about it that a test may ask."""

from __future__ import annotations

import csv
import inspect
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import lightning_perf as lp
from lightning_perf.host import MisconfigurationException
from tests.contract.rows import ROWS, Row
from tests.wild.cases import Case, seed_all

LOSSLESS = Row("lossless()", lp.lossless, "rounding", {})
EVERY_ROW = (LOSSLESS, *ROWS)
#: How a ValueError begins that is a refusal, of a target that this module cannot meet.
OUT_OF_REACH = ("no group of channels can be cut", "target=")
EPOCHS, TRAIN_BATCHES, VAL_BATCHES = 2, 4, 2
SEEDS = 3


@dataclass
class Run:
    """What a fit left behind; ``refusal`` instead where a callback refused the module."""

    callbacks: list[Any]
    refusal: MisconfigurationException | ValueError | None = None
    steps: int = 0
    losses: tuple[float, ...] = ()
    metrics: dict[str, float] | None = None
    logged: tuple[dict[str, float], ...] = ()
    weights: dict[str, torch.Tensor] | None = None
    parameters: tuple[str, ...] = ()
    attributes: tuple[list[str], ...] = ()
    first_epoch: Path | None = None


def callbacks_of(row: Row) -> list[Any]:
    """The row's callback in a list; ``lossless()`` is a list already."""
    made = row.make()
    return made if isinstance(made, list) else [made]


def refuses(row: Row, case: Case) -> bool:
    """Whether the row says that it refuses what this case is."""
    return bool(set(row.refuses) & set(case.traps))


def fit(
    case: Case,
    callbacks: Iterable[Any],
    folder: Path,
    resume: Path | None = None,
    *,
    seed: int = 0,
    **trainer_args: Any,
) -> Run:
    """Fit ``case`` for two epochs of a few batches, or from a checkpoint to the end of the second.

    ``seed`` moves the initial weights and all that is drawn in training; the data stay.
    """
    ns, task = case.ns, case.make(seed)
    callbacks = list(callbacks)
    run = Run(callbacks)
    losses: list[float] = []

    class Losses(ns.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
            if outputs:
                losses.append(float(outputs["loss"] if isinstance(outputs, dict) else outputs))

    saver = ns.callbacks.ModelCheckpoint(folder, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    settings = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": EPOCHS,
        "limit_train_batches": TRAIN_BATCHES,
        "limit_val_batches": VAL_BATCHES,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        "logger": ns.loggers.CSVLogger(folder, name="log", version=0),
        "callbacks": [*callbacks, Losses(), saver],
        "default_root_dir": folder,
    }
    trainer = ns.Trainer(**{**settings, **case.trainer, **trainer_args})
    how: dict[str, Any] = {"ckpt_path": None if resume is None else str(resume)}
    if "objects in hparams" in case.traps and "weights_only" in inspect.signature(trainer.fit).parameters:
        how["weights_only"] = False  # the package's own classes lie in its checkpoints
    # A module that draws its data has it again under its seed only; all else that is random comes from the checkpoint.
    seed_all(11 + seed if resume is None or "draws its data" in case.traps else 99)
    try:
        trainer.fit(task.module, task.train, task.val, **how)
    except (MisconfigurationException, ValueError) as refusal:
        if isinstance(refusal, ValueError) and not str(refusal).startswith(OUT_OF_REACH):
            raise
        run.refusal = refusal
        return run
    run.steps = trainer.global_step
    run.losses = tuple(losses)
    run.metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    run.logged = tuple(_rows(folder / "log" / "version_0" / "metrics.csv"))
    run.weights = {key: value.clone() for key, value in task.module.state_dict().items()}
    run.parameters = tuple(name for name, _ in task.module.named_parameters())
    run.attributes = tuple(sorted(vars(each)) for each in (task.module, trainer.strategy, trainer.fit_loop))
    run.first_epoch = folder / "epoch=0.ckpt"
    return run


def score(run: Run) -> float:
    """The mean loss of the second half: what training has come to, of modules that log nothing as well."""
    return statistics.fmean(run.losses[len(run.losses) // 2 :] or [math.nan])


def noise(scores: Sequence[float]) -> float:
    """How far runs lie apart that differ in their seed only."""
    return max(scores) - min(scores)


def _rows(path: Path) -> Iterable[dict[str, float]]:
    if path.exists():
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                yield {name: float(value) for name, value in row.items() if value}


class Runs:
    """Fits each case once without us and once per row, when first asked for, and keeps the result."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kept: dict[tuple[str, str], Run] = {}

    def plain(self, case: Case, seed: int = 0) -> Run:
        """The case without any callback of ours."""
        return self._fit(case, f"plain{seed or ''}", [], seed)

    def ours(self, case: Case, row: Row) -> Run:
        """The case with the row's callback, and ExactResume, which changes no result."""
        callbacks = callbacks_of(row)
        if not any(isinstance(callback, lp.ExactResume) for callback in callbacks):
            callbacks.append(lp.ExactResume())
        return self._fit(case, row.name, callbacks)

    def _fit(self, case: Case, name: str, callbacks: list[Any], seed: int = 0) -> Run:
        key = (case.name, name)
        if key not in self._kept:
            folder = self._folder / "-".join(key).replace("()", "")
            self._kept[key] = fit(case, callbacks, folder, seed=seed)
        return self._kept[key]
