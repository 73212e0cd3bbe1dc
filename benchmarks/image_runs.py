"""One run of a pruned ResNet-20 on Fashion-MNIST, the same for zeros and for channels, whole or on fewer training images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelPruning

import lightning_perf as lp
from benchmarks.goals import RESULTS, quiet_trainer
from benchmarks.pruning_runs import Folder, Timed
from lightning_perf.host import seed_everything
from lightning_perf.report import FINAL_ACCURACY, TRAIN_SECONDS, Quantity, Report, Run
from lightning_perf_recipes.image_classification.data import FashionMNISTData
from lightning_perf_recipes.image_classification.module import ImageClassifier

EPOCHS, SEEDS, THREADS = 10, 3, 1
TRAINING, TEST, BATCH = 55_000, 10_000, 128  # images: 5,000 of the 60,000 are set aside; a batch
MACS = Quantity("macs", "MACs of an image", "M", better="lower", digits=2, scale=1e-6)
IMAGE = torch.zeros(1, 1, 28, 28)

Prepared = Callable[[], tuple[ImageClassifier, list[pl.Callback]]]


def trained(
    variant: str, seed: int, folder: Folder, prepared: Prepared, **short: Any
) -> tuple[Run, dict[str, Any], pl.Trainer]:
    """Train what ``prepared`` makes, test it on the test images; the run, what else is known of it, and the trainer.

    Whatever a variant draws in its making, all variants of a seed see the same batches. Lightning's ``ModelPruning`` breaks
    on the weights of ``ChannelsLast`` (torch's ``global_unstructured`` flattens with ``view``), so it goes without.
    """
    torch.set_num_threads(THREADS)
    seed_everything(seed)
    data, timed = images(folder.images), Timed()
    module, pruning = prepared()
    layout = [] if any(isinstance(one, ModelPruning) for one in pruning) else [lp.ChannelsLast()]
    callbacks = [lp.OptimizerFactory("adamw", lr=3e-3, schedule="one_cycle"), *layout, *pruning, timed]
    always = {"max_epochs": EPOCHS, "limit_val_batches": 0, "num_sanity_val_steps": 0}
    trainer = quiet_trainer(callbacks, **{**always, **short})
    seed_everything(100 + seed)
    trainer.fit(module, datamodule=data)
    tester = quiet_trainer([], limit_test_batches=short.get("limit_train_batches"))
    quantities = {
        "final_metric": tester.test(module, datamodule=data, verbose=False)[0]["test_acc"],
        "sparsity": lp.sparsity(module).total,
        "macs": float(lp.count_macs(module.net, IMAGE)),
        "parameters": float(sum(parameter.numel() for parameter in module.net.parameters())),
        "train_seconds": timed.seconds,
    }
    more = {
        "batches": timed.batches,
        "order": timed.order,
        "net": {k: [*v.shape] for k, v in module.net.state_dict().items()},
    }
    return Run(variant, seed, quantities=quantities), more, trainer


def images(limit: int | None) -> FashionMNISTData:
    """The data: the first ``limit`` of the recipe's fixed permutation of the training images, or all of them.

    Raises:
        ValueError: fewer than a batch, or more than there are.
        RuntimeError: Fashion-MNIST is not here, and the recipe would run on something else.
    """
    if limit is not None and not BATCH <= limit <= TRAINING:
        raise ValueError(f"--images {limit} must be from {BATCH}, one batch, to {TRAINING}, all that is trained on.")
    data = FashionMNISTData(batch_size=BATCH, train_limit=limit)
    data.prepare_data()
    for stage, expected in (("fit", limit or TRAINING), ("test", TEST)):
        data.setup(stage)
        there: Any = data.train_set if stage == "fit" else data.test_set
        if len(there) != expected:
            raise RuntimeError(
                f"{len(there)} images to {stage} and not {expected}: these are not Fashion-MNIST; put its four files into a "
                "folder where the recipe looks (lightning_perf_recipes/image_classification/data.py)."
            )
    return data


def usual(name: str, limit: int | None) -> Folder:
    """The folder of a benchmark without ``--folder``; both read the same ``dense`` runs, which are the same runs."""
    path, dense = (RESULTS / (one if limit is None else f"{one}_{limit}") for one in (name, "pruning_accuracy"))
    return Folder(path, limit, {"dense": dense})


def titled(title: str, folder: Folder) -> str:
    """A report's title, with the share of the training images where it is not all of them."""
    return title if folder.images is None else f"{title}, {folder.images:,} training images of {TRAINING:,}"


def reported(folder: Folder, title: str, runs: list[Run], rows: list[Quantity], verdicts: list[str]) -> bool:
    """Print the report beside ``dense`` and how the goals stand, and write it; whether there was enough for one."""
    if not any(run.variant == "dense" for run in runs):
        print(f"{len(runs)} runs, none of them dense: too few for a table.")
        return False
    accuracy = dataclasses.replace(FINAL_ACCURACY, label="test accuracy")
    report = Report(titled(title, folder), "dense", runs, [accuracy, *rows, TRAIN_SECONDS], notes=notes(folder))
    print(report.table())
    report.to_json(folder.path.with_suffix(".json"))
    print(*verdicts, sep="\n")
    return True


def notes(folder: Folder) -> list[str]:
    """What a report says of its protocol."""
    seen = folder.images or TRAINING
    reduced = (
        f"A reduced protocol: {seen:,} of the {TRAINING:,} training images ({seen / TRAINING:.0%}), the same ones in every "
        "run, and the same number of epochs; so levels are lower, and fewer steps are left to recover in. "
        if folder.images is not None
        else ""
    )
    return [
        f"{reduced}Each run: {EPOCHS} epochs over {seen:,} training images, batch {BATCH}, {seen // BATCH} steps an epoch, "
        f"the same batches for all variants of a seed; all {TEST:,} test images; {THREADS} thread.",
        "Training times are no measurement of speed: runs may have gone side by side, and Lightning's ModelPruning, which "
        "breaks on channels-last weights, goes without ChannelsLast.",
    ]
