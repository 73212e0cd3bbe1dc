"""Accuracy of a pruned ResNet-20 on Fashion-MNIST at 80, 90 and 95 %, against dense and against Lightning's ModelPruning.

    python -m benchmarks.pruning_accuracy             # runs what has no result file yet; may be stopped
    python -m benchmarks.pruning_accuracy --table     # the table of what there is

Every run has the same 10 epochs over the same batches: the image recipe, AdamW at 3e-3, one cycle. Variants, frozen
beforehand: ``dense``; ``ours``: ``MagnitudePruning(sparsity)`` with its defaults; ``lightning once``: ``ModelPruning`` of
the same weights, global, to the full sparsity after the third epoch; ``lightning gradual``: its amount compounded over
the first seven epochs, reaching the sparsity at the same point as ours. Its lottery-ticket reset is off. Three seeds.

Goals, on the test images, mean over seeds: at most 0.1, 0.3, 1.0 points below ``dense``; above both of Lightning's at each.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import statistics
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback, ModelPruning

import lightning_perf as lp
from benchmarks.goals import RESULTS, quiet_trainer
from lightning_perf import measuring
from lightning_perf.host import seed_everything
from lightning_perf.report import FINAL_ACCURACY, TRAIN_SECONDS, Quantity, Report, Run, json_text
from lightning_perf_recipes.image_classification.data import FashionMNISTData
from lightning_perf_recipes.image_classification.module import ImageClassifier

FOLDER = RESULTS / "pruning_accuracy"
EPOCHS, SEEDS, THREADS = 10, 3, 2
ONCE_AFTER, GRADUAL_EPOCHS = 2, 7  # index of an epoch; number of epochs
GOALS = {0.8: 0.1, 0.9: 0.3, 0.95: 1.0}  # sparsity: points below dense
SPARSITY = Quantity("sparsity", "zeros", "%", digits=2, compare="difference", scale=100)
RIVALS = ("lightning once", "lightning gradual")
VARIANTS = ("dense", *(f"{how} {sparsity:g}" for sparsity in GOALS for how in ("ours", *RIVALS)))


def pruning(variant: str, module: Any) -> list[Callback]:
    """The callback of a variant."""
    how, _, sparsity = variant.rpartition(" ")
    if not how:
        return []
    if how == "ours":
        return [lp.MagnitudePruning(float(sparsity))]
    layers = [name.removesuffix(".weight") for name in lp.sparsity(module).layers]
    at_once = how == "lightning once"
    each = float(sparsity) if at_once else 1 - (1 - float(sparsity)) ** (1 / GRADUAL_EPOCHS)
    when = (lambda epoch: epoch == ONCE_AFTER) if at_once else (lambda epoch: epoch < GRADUAL_EPOCHS)
    return [
        ModelPruning(
            "l1_unstructured",
            parameters_to_prune=[(module.get_submodule(name), "weight") for name in layers],
            use_global_unstructured=True,
            amount=each,
            apply_pruning=when,
            use_lottery_ticket_hypothesis=False,
        )
    ]


def fit(variant: str, seed: int, **arguments: Any) -> Run:
    """One run on a fresh module, and its accuracy on the test images."""
    torch.set_num_threads(THREADS)
    seed_everything(seed)
    module, data = ImageClassifier(), FashionMNISTData()
    factory = lp.OptimizerFactory("adamw", lr=3e-3, schedule="one_cycle")
    callbacks = [factory, lp.ChannelsLast(), *pruning(variant, module)]
    trainer = quiet_trainer(
        callbacks, **{"max_epochs": EPOCHS, "limit_val_batches": 0, "num_sanity_val_steps": 0, **arguments}
    )
    start = time.perf_counter()
    trainer.fit(module, datamodule=data)
    seconds = time.perf_counter() - start
    tester = quiet_trainer([], limit_test_batches=arguments.get("limit_test_batches"))
    accuracy = tester.test(module, datamodule=data, verbose=False)[0]["test_acc"]
    quantities = {"final_accuracy": accuracy, "sparsity": lp.sparsity(module).total, "train_seconds": seconds}
    return Run(variant, seed, quantities=quantities)


def path_of(folder: Path, variant: str, seed: int) -> Path:
    """The file of one run."""
    return folder / f"{variant.replace(' ', '_')}_seed{seed}.json"


def run_missing(folder: Path, seeds: int, **arguments: Any) -> None:
    """Run what has no file, in interleaved rounds."""
    for seed, names in enumerate(measuring.schedule(VARIANTS, seeds)):
        for name in names:
            path = path_of(folder, name, seed)
            if path.exists():
                continue
            run = fit(name, seed, **arguments)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json_text.dumps({"written": time.time(), **dataclasses.asdict(run)}), encoding="utf-8")
            print(
                f"{name}, seed {seed}: {run.value('final_accuracy'):.4f}, {run.value('sparsity'):.4f} zeros, "
                f"{run.value('train_seconds'):.0f} s",
                flush=True,
            )


def read(folder: Path) -> list[Run]:
    """The runs that have a file."""
    found = []
    for variant in VARIANTS:
        for path in sorted(folder.glob(f"{variant.replace(' ', '_')}_seed*.json")):
            data = json_text.loads(path.read_text(encoding="utf-8"))
            data.pop("written")
            found.append(Run(**data))
    return found


def table(folder: Path) -> None:
    """Print the report and how the goals stand."""
    runs = read(folder)
    ends = {name: [run.quantities["final_accuracy"] or 0.0 for run in runs if run.variant == name] for name in VARIANTS}
    if not ends["dense"]:
        print(f"{len(runs)} runs, none of them dense: too few for a table.")
        return
    rows = [dataclasses.replace(FINAL_ACCURACY, label="test accuracy", digits=2), SPARSITY, TRAIN_SECONDS]
    report = Report("ResNet-20 on Fashion-MNIST, pruned", "dense", runs, rows)
    print(report.table())
    report.to_json(folder.with_suffix(".json"))
    mean = {name: 100 * statistics.fmean(values) for name, values in ends.items() if values}
    for sparsity, goal in GOALS.items():
        ours = mean.get(f"ours {sparsity:g}")
        if ours is None:
            continue
        drop = mean["dense"] - ours
        print(f"GOAL {sparsity:.0%}: drop <= {goal} points: {drop:.2f}: {'met' if drop <= goal else 'NOT met'}")
        for rival in RIVALS:
            theirs = mean.get(f"{rival} {sparsity:g}")
            if theirs is not None:
                met = "met" if ours > theirs else "NOT met"
                print(f"GOAL {sparsity:.0%}: above {rival}: {ours - theirs:+.2f} points: {met}")


def main(args: Sequence[str] | None = None) -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser("python -m benchmarks.pruning_accuracy")
    parser.add_argument("--table", action="store_true", help="only print what there is")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--batches", type=int, help="so many batches an epoch, for a look; needs --folder")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the result files are")
    known = parser.parse_args(args)
    if known.batches is not None and known.folder == FOLDER:
        parser.error(f"--batches {known.batches}: shortened runs are no results; name another --folder.")
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    if not known.table:
        short: dict[str, Any] = {}
        if known.batches is not None:
            short = {"limit_train_batches": known.batches, "limit_test_batches": known.batches}
        run_missing(known.folder, known.seeds, **short)
    table(known.folder)


if __name__ == "__main__":
    main()
