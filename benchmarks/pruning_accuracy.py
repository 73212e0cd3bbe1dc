"""Accuracy of a pruned ResNet-20 on Fashion-MNIST at 80, 90 and 95 %, against dense and against Lightning's ModelPruning.

    python -m benchmarks.pruning_accuracy                  # runs what has no result file yet; may be stopped
    python -m benchmarks.pruning_accuracy --table          # the table of what there is
    python -m benchmarks.pruning_accuracy --images 6000    # a tenth of the training images, in a folder of its own

Every run has the same 10 epochs over the same batches of 55,000 training images (5,000 of the 60,000 are set aside), on one
thread: the image recipe, AdamW at 3e-3, one cycle. Several processes may run side by side. Variants, frozen beforehand:
``dense``; ``ours``: ``MagnitudePruning(sparsity)`` with its defaults; ``lightning once``: ``ModelPruning`` of the same
weights, global, to the full sparsity after the third epoch; ``lightning gradual``: its amount compounded over the first
seven epochs, reaching the sparsity at the same point as ours. Its lottery-ticket reset is off. Three seeds. ``--images`` is
a reduced protocol, labelled as such: the same epochs over fewer images, the same ones in every run, and all test images.

Goals, on the test images, mean over seeds: at most 0.1, 0.3, 1.0 points below ``dense``; above both of Lightning's at each.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback, ModelPruning

import lightning_perf as lp
from benchmarks.goals import RESULTS
from benchmarks.guide_parts import GUIDES, drawn, publish, spread, with_bars
from benchmarks.image_runs import SEEDS, reported, trained, usual
from benchmarks.pruning_runs import Folder, command, pairs
from lightning_perf.report import Quantity, Report, Run
from lightning_perf_recipes.image_classification.module import ImageClassifier

ONCE_AFTER, GRADUAL_EPOCHS = 2, 7  # index of an epoch; number of epochs
GOALS = {0.8: 0.1, 0.9: 0.3, 0.95: 1.0}  # sparsity: points below dense
SPARSITY = Quantity("sparsity", "zeros", "%", digits=2, compare="difference", scale=100)
STYLES = {  # marker, colour, name
    "ours": ("o", "tab:blue", "MagnitudePruning"),
    "lightning once": ("s", "tab:orange", "Lightning's ModelPruning, at once"),
    "lightning gradual": ("^", "tab:green", "Lightning's ModelPruning, gradual"),
}
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


def fit(variant: str, seed: int, folder: Folder, **short: Any) -> tuple[Run, dict[str, Any]]:
    """One run on a fresh module, and its accuracy on the test images."""

    def prepared() -> tuple[ImageClassifier, list[Callback]]:
        module = ImageClassifier()
        return module, pruning(variant, module)

    run, more, _ = trained(variant, seed, folder, prepared, **short)
    return run, more


def table(folder: Folder) -> None:
    """Print the report and how the goals stand."""
    runs = list(folder.runs(VARIANTS))
    if not reported(folder, "ResNet-20 on Fashion-MNIST, pruned", runs, [SPARSITY], verdicts(runs)):
        return
    if folder.path.parent == RESULTS:
        publish("pruning_accuracy", GUIDES / "pruning.md", draw, section)


def verdicts(runs: Sequence[Run]) -> list[str]:
    """How the goals stand, a line each; over the seeds that both sides of a comparison have."""
    lines = []
    for sparsity, goal in GOALS.items():
        for rival in ("dense", *(f"{name} {sparsity:g}" for name in RIVALS)):
            ours, theirs = pairs(runs, f"ours {sparsity:g}", rival, "final_metric")
            if not ours:
                continue
            ahead = 100 * (statistics.fmean(ours) - statistics.fmean(theirs))
            if rival == "dense":
                text, met = f"drop <= {goal} points: {-ahead:.2f}", -ahead <= goal
            else:
                text, met = f"above {rival.rpartition(' ')[0]}: {ahead:+.2f} points", ahead > 0
            lines.append(f"GOAL {sparsity:.0%}, {len(ours)} seeds: {text}: {'met' if met else 'NOT met'}")
    return lines


def accuracies(report: Report, variant: str) -> list[float]:
    """Per cent, by seed."""
    return [100 * one for one in report.values("final_metric", variant) if one is not None]


def draw(report: Report, path: Path) -> None:
    """Accuracy against sparsity, dense as a line; bars from the lowest to the highest seed."""
    with drawn(path) as (axis,):
        mean, low, high = spread(accuracies(report, "dense"))
        axis.axhline(mean, color="0.3", linestyle="--", linewidth=1, label="dense")
        axis.axhspan(low, high, color="0.3", alpha=0.12, linewidth=0)
        for shift, (how, (marker, colour, label)) in zip((-0.25, 0.0, 0.25), STYLES.items(), strict=True):
            there = [one for one in GOALS if f"{how} {one:g}" in report.variants]
            if there:
                x, ys = [100 * one + shift for one in there], [accuracies(report, f"{how} {one:g}") for one in there]
                with_bars(axis, x, ys, marker=marker, color=colour, label=label)
        axis.set(xlabel="weights that are zero, %", ylabel="test accuracy, %", xticks=[100 * one for one in GOALS])
        axis.legend(fontsize=7)


def section(report: Report) -> str:
    """Accuracies by variant and sparsity, and how the goals stand."""
    dense = accuracies(report, "dense")
    head = "| | " + " | ".join(f"{one:.0%} zeros" for one in GOALS) + " |"
    lines = [head, "|---" * (len(GOALS) + 1) + "|"]
    for how, (_, _, label) in STYLES.items():
        cells = []
        for one in GOALS:
            name = f"{how} {one:g}"
            mine, theirs = pairs(report.runs, name, "dense", "final_metric")
            ahead = f" ({100 * (statistics.fmean(mine) - statistics.fmean(theirs)):+.2f})" if mine else ""
            cells.append(f"{statistics.fmean(accuracies(report, name)):.2f}%{ahead}" if name in report.variants else "")
        lines.append(f"| {label} | {' | '.join(cells)} |")
    lines += [
        f"\nDense: {statistics.fmean(dense):.2f}%, {len(dense)} seeds; in brackets points above it, over common seeds.\n"
    ]
    return "\n".join([*lines, *(f"- {line}" for line in verdicts(report.runs))])


def main(args: Sequence[str] | None = None) -> None:
    """Run what is missing, then print the table."""
    folder = functools.partial(usual, "pruning_accuracy")
    command("pruning_accuracy", folder, VARIANTS, fit, table, args, seeds=SEEDS, fewer=True)


if __name__ == "__main__":
    main()
