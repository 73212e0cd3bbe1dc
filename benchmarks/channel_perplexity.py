"""Perplexity of the language model recipe with the products of its blocks divided by 1.5.

    python -m benchmarks.channel_perplexity             # runs what has no result file yet; may be stopped
    python -m benchmarks.channel_perplexity --table     # the table of what there is

Every run has the same 10 epochs over the same batches of the recipe: AdamW at 1e-3, a warm-up over 5 % and cosine. Variants,
frozen beforehand: ``dense``; ``ours``: ``ChannelPruning(share, at=0.3)``, whose share of the whole leaves 2/3 of the blocks'
products (embedding and output stay); ``small``: the shape that ours ended with, from scratch. Three seeds.

Goal: mean perplexity on the validation text within 3 % of ``dense``, or the honest frontier.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

import lightning_perf as lp
from benchmarks.goals import RESULTS, quiet_trainer
from benchmarks.pruning_runs import Folder, Timed, command, of_shapes, pairs, shapes_in
from lightning_perf.host import seed_everything
from lightning_perf.report import TRAIN_SECONDS, Quantity, Report, Run
from lightning_perf_recipes.language_model.data import TextData
from lightning_perf_recipes.language_model.module import BYTES, LanguageModel

FOLDER = RESULTS / "channel_perplexity"
EPOCHS, SEEDS, THREADS, AT = 10, 3, 2, 0.3
PART, GOAL = 1.5, 1.03
VARIANTS = ("dense", "ours", "small")
PERPLEXITY = Quantity("perplexity", "perplexity", "", better="lower", digits=3, kind="quality")
MACS = Quantity("macs", "MACs of a block of text", "M", better="lower", digits=1, scale=1e-6)
BLOCKS = Quantity("block_macs", "of these, in the transformer's blocks", "M", better="lower", digits=1, scale=1e-6)


def products(module: LanguageModel) -> tuple[int, int]:
    """Of a forward pass over one block of text: all, and those of the transformer's blocks (all but the output layer)."""
    length = module.hparams["block_size"]
    whole = lp.count_macs(module.net, torch.zeros(1, length, dtype=torch.int64))
    return whole, whole - length * module.hparams["width"] * BYTES


def prepared(variant: str, seed: int, folder: Folder) -> tuple[LanguageModel, list[Callback]]:
    """A fresh module and the callbacks of a variant."""
    module = LanguageModel(warmup_steps=0)
    if variant == "ours":
        whole, blocks = products(module)
        return module, [lp.ChannelPruning(1 - blocks / whole * (1 - 1 / PART), at=AT)]
    if variant == "small":
        drawn = {name: value.clone() for name, value in module.state_dict().items()}
        of_shapes(module, folder.more("ours", seed)["shapes"])
        with torch.no_grad():
            for name, value in module.state_dict().items():
                if value.shape == drawn[name].shape:
                    value.copy_(drawn[name])
                elif value.ndim > 1:  # as the recipe draws them: a normal distribution, whatever the width
                    value.normal_(0.0, float(drawn[name].std()))
    return module, []


def fit(variant: str, seed: int, folder: Folder, **short: Any) -> tuple[Run, dict[str, Any]]:
    """One run on a fresh module, its perplexity on the validation text, and the shapes of ours."""
    torch.set_num_threads(THREADS)
    seed_everything(seed)
    data, timed = TextData(), Timed()
    module, pruning = prepared(variant, seed, folder)
    callbacks = [lp.OptimizerFactory("adamw", lr=1e-3, schedule="warmup_cosine", warmup=0.05), *pruning, timed]
    trainer = quiet_trainer(callbacks, max_epochs=EPOCHS, limit_val_batches=0, num_sanity_val_steps=0, **short)
    trainer.fit(module, datamodule=data)
    more: dict[str, Any] = {}
    if variant == "ours":
        more["shapes"] = shapes_in(trainer, pruning[0])
    tester = quiet_trainer([], limit_val_batches=short.get("limit_train_batches"))
    whole, blocks = products(module)
    quantities = {
        "perplexity": tester.validate(module, datamodule=data, verbose=False)[0]["val_perplexity"],
        "macs": float(whole),
        "block_macs": float(blocks),
        "train_seconds": timed.seconds,
    }
    return Run(variant, seed, quantities=quantities), more


def table(folder: Folder) -> None:
    """Print the report and how the goal stands."""
    runs = list(folder.runs(VARIANTS))
    if not any(run.variant == "dense" for run in runs):
        print(f"{len(runs)} runs, none of them dense: too few for a table.")
        return
    report = Report("language model, channels pruned", "dense", runs, [PERPLEXITY, MACS, BLOCKS, TRAIN_SECONDS])
    print(report.table())
    report.to_json(folder.path.with_suffix(".json"))
    print(*verdicts(runs), sep="\n")


def verdicts(runs: Sequence[Run]) -> list[str]:
    """How the goal stands, over the seeds that both have; no line before there is one."""
    ours, theirs = pairs(runs, "ours", "dense", "perplexity")
    if not ours:
        return []
    ratio = statistics.fmean(ours) / statistics.fmean(theirs)
    met = "met" if ratio <= GOAL else "NOT met"
    return [f"GOAL blocks' MACs/{PART:g}, {len(ours)} seeds: perplexity <= {GOAL:g}x: {ratio:.4f}x: {met}"]


def main(args: Sequence[str] | None = None) -> None:
    """Run what is missing, then print the table."""
    usual, after = Folder(FOLDER), {"small": "ours"}
    command("channel_perplexity", lambda _: usual, VARIANTS, fit, table, args, seeds=SEEDS, after=after)


if __name__ == "__main__":
    main()
