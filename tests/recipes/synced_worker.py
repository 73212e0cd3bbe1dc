"""Recipes whose batches weigh alike or not, evaluated on several processes; started by ``test_synced_metrics.py``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy

import lightning_perf as lp
from recipes.speech.synthesis.data import SpokenTextData
from recipes.speech.synthesis.module import MelSynthesiser
from recipes.tabular.data import TableData
from recipes.tabular.module import TabularClassifier
from recipes.translation.data import TranslationData
from recipes.translation.module import Translator
from tests.ranks import run_cases
from tests.recipes.tones import write_tones

SHARES: Any = {"val_share": 0.3, "test_share": 0.3}
#: An even number of items each, so that two processes are given every one of them once.
ITEMS = {"tabular": 18, "translation": 18, "synthesis": 4}
STRATEGIES: dict[str, Callable[[], Any]] = {"ddp": DDPStrategy, "perf_ddp": lp.PerfDDP}


def write(folder: Path) -> None:
    """What the recipes read: rows of a table, words of different lengths, tones of different lengths."""
    rows = [f"{i},{i * i % 7},{'yes' if i % 4 else 'no'}" for i in range(60)]
    (folder / "table.csv").write_text("\n".join(["a,b,bought", *rows]) + "\n")
    words = ["ab" * (1 + i % 5) + "cdefghij"[: 1 + i % 8] + str(i) for i in range(60)]
    pairs = [f"{word}\t{word[:0:-1]}{'' if i % 3 else 'x'}\n" for i, word in enumerate(words)]
    (folder / "words.tsv").write_text("".join(pairs))  # 217 tokens in the test: an odd number
    for word, seconds in (("one", 0.31), ("two", 0.53), ("three", 0.41), ("four", 0.36)):
        write_tones(folder / "wavs", (word,), seconds=seconds)


def build(recipe: str, folder: Path) -> tuple[pl.LightningModule, pl.LightningDataModule]:
    """An untrained module, the same on every process, and data whose last batch is smaller than the others."""
    torch.manual_seed(0)
    if recipe == "tabular":
        data = TableData(path=str(folder / "table.csv"), target="bought", batch_size=8, eval_batch_size=4, **SHARES)
        return TabularClassifier(columns=2, num_classes=2, width=8), data
    if recipe == "translation":
        data = TranslationData(path=str(folder / "words.tsv"), batch_size=8, eval_batch_size=4, **SHARES)
        return Translator(width=8, layers=1, heads=2, scored=2, longest=4), data
    data = SpokenTextData(str(folder / "wavs"), mels=20, split_by="speaker", batch_size=8, eval_batch_size=1)
    return MelSynthesiser(mels=20, width=8, layers=1), data


def evaluate(recipe: str, folder: Path, **arguments: Any) -> dict[str, float]:
    """What a validation and a test log."""
    module, data = build(recipe, folder)
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(accelerator="cpu", default_root_dir=folder, **quiet, **arguments)
    found: dict[str, float] = {}
    for evaluation in (trainer.validate, trainer.test):
        evaluation(module, data, verbose=False)
        found |= {name: float(value) for name, value in trainer.callback_metrics.items()}
    return found


def main(out: str) -> None:
    path = Path(out)
    cases: dict[str, Callable[[], Any]] = {}
    for recipe in ITEMS:
        for name, make in STRATEGIES.items():
            cases[f"{recipe}-{name}"] = lambda recipe=recipe, make=make: evaluate(
                recipe, path.parent, devices=2, strategy=make()
            )
    run_cases(cases, path)


if __name__ == "__main__":
    main(*sys.argv[1:])
