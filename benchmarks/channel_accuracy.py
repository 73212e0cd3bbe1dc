"""Accuracy of ResNet-20 on Fashion-MNIST with half and a quarter of its products, against small nets and Torch-Pruning.

    python -m benchmarks.channel_accuracy                  # runs what has no result file yet; may be stopped
    python -m benchmarks.channel_accuracy --table          # the table of what there is
    python -m benchmarks.channel_accuracy --images 6000    # a tenth of the training images, in a folder of its own

Every run has the same 10 epochs over the same batches of 55,000 training images (5,000 of the 60,000 are set aside), on one
thread: the image recipe, AdamW at 3e-3, one cycle. Several processes may run side by side. ``dense`` is the run of
benchmarks/pruning_accuracy.py. Other variants, frozen beforehand, for 1/2 and 1/4 of the multiply-accumulates of a forward
pass: ``ours``: ``ChannelPruning(share, at=0.3, round_to=4)``; ``small``: the shape that ours ended with, trained from
scratch; ``narrow``: the widest uniformly narrower ResNet-20 that meets the share, from scratch; ``torch-pruning``: its
global magnitude pruner by hand before the same epoch, with the same rounding (benchmarks/channel_rivals.py); since the net
does not run without channels of its residual stream, which are hard-coded in its shortcuts, these stay, as they do in ours.
Three seeds. ``--images`` is a reduced protocol, labelled as such: the same epochs over fewer images, the same in every run.

Goals, on the test images, mean over seeds: at most 0.3 and 1.0 points below ``dense``; not below ``small``, ``narrow`` or
``torch-pruning``.
"""

from __future__ import annotations

import functools
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback
from torch import nn

import lightning_perf as lp
from benchmarks.channel_rivals import TorchPruningByHand
from benchmarks.goals import RESULTS
from benchmarks.guide_parts import GUIDES, drawn, publish, spread, with_bars
from benchmarks.image_runs import EPOCHS, IMAGE, MACS, SEEDS, reported, trained, usual
from benchmarks.pruning_runs import Folder, command, of_shapes, pairs, shapes_in
from lightning_perf.report import Quantity, Report, Run
from lightning_perf_recipes.image_classification.module import ImageClassifier
from lightning_perf_recipes.image_classification.networks import PadShortcut, ResNet

ROUND_TO, AT = 4, 0.3
GOALS = {2: 0.3, 4: 1.0}  # products divided by: points below dense
STYLES = {  # marker, colour, name
    "dense": ("D", "0.3", "dense"),
    "ours": ("o", "tab:blue", "ChannelPruning"),
    "small": ("s", "tab:orange", "that shape from scratch"),
    "narrow": ("^", "tab:green", "uniformly narrower, from scratch"),
    "torch-pruning": ("v", "tab:red", "Torch-Pruning by hand"),
}
RIVALS = ("small", "narrow", "torch-pruning")
VARIANTS = ("dense", *(f"{how} {part}" for part in GOALS for how in ("ours", *RIVALS)))
PARAMETERS = Quantity("parameters", "parameters", "k", better="lower", digits=1, scale=1e-3)


def narrow(part: int) -> nn.Module:
    """The widest ResNet-20 with at most so many products whose three widths are one share of the usual ones, rounded."""
    most = lp.count_macs(ImageClassifier().net, IMAGE) / part
    shares = (step / 64 for step in range(64, 0, -1))
    nets = (ResNet([round(share * width) for width in (16, 32, 64)], 3, PadShortcut, 1, 10) for share in shares)
    return next(net for net in nets if lp.count_macs(net, IMAGE) <= most)


def prepared(variant: str, seed: int, folder: Folder) -> tuple[ImageClassifier, list[Callback]]:
    """A fresh module and the callbacks of a variant."""
    module = ImageClassifier()
    how, _, part = variant.rpartition(" ")
    if how == "ours":
        return module, [lp.ChannelPruning(1 / int(part), at=AT, round_to=ROUND_TO)]
    if how == "torch-pruning":
        stream = ["head", "stem.0", *(name for name, _ in module.net.named_modules() if name.endswith("conv2"))]
        return module, [TorchPruningByHand(1 / int(part), round(AT * EPOCHS), IMAGE, (["head"], stream), ROUND_TO)]
    if how == "narrow":
        module.net = narrow(int(part))
    if how == "small":
        of_shapes(module, folder.more(f"ours {part}", seed)["shapes"])
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):  # as ResNet draws them
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return module, []


def fit(variant: str, seed: int, folder: Folder, **short: Any) -> tuple[Run, dict[str, Any]]:
    """One run on a fresh module, its accuracy on the test images, and the shapes of ours."""
    pruning: list[Callback] = []

    def ready() -> tuple[ImageClassifier, list[Callback]]:
        module, callbacks = prepared(variant, seed, folder)
        pruning.extend(callbacks)
        return module, callbacks

    run, more, trainer = trained(variant, seed, folder, ready, **short)
    if variant.startswith("ours"):
        more["shapes"] = shapes_in(trainer, pruning[0])
    if variant.startswith("torch-pruning"):
        assert isinstance(pruning[0], TorchPruningByHand)
        more |= {"ignored": pruning[0].ignored[0], "failures": pruning[0].failures}
    return run, more


def table(folder: Folder) -> None:
    """Print the report and how the goals stand."""
    runs = list(folder.runs(VARIANTS))
    if not reported(folder, "ResNet-20 on Fashion-MNIST, channels pruned", runs, [MACS, PARAMETERS], verdicts(runs)):
        return
    if folder.path.parent == RESULTS:
        publish("channel_accuracy", GUIDES / "channel_pruning.md", draw, section)


def verdicts(runs: Sequence[Run]) -> list[str]:
    """How the goals stand, a line each; over the seeds that both sides of a comparison have."""
    lines = []
    for part, goal in GOALS.items():
        for rival in ("dense", *(f"{name} {part}" for name in RIVALS)):
            ours, theirs = pairs(runs, f"ours {part}", rival, "final_metric")
            if not ours:
                continue
            ahead = 100 * (statistics.fmean(ours) - statistics.fmean(theirs))
            if rival == "dense":
                text, met = f"drop <= {goal} points: {-ahead:.2f}", -ahead <= goal
            else:
                text, met = f"not below {rival.rpartition(' ')[0]}: {ahead:+.2f} points", ahead >= 0
            lines.append(f"GOAL MACs/{part}, {len(ours)} seeds: {text}: {'met' if met else 'NOT met'}")
    return lines


def accuracies(report: Report, variant: str) -> list[float]:
    """Per cent, by seed."""
    return [100 * one for one in report.values("final_metric", variant) if one is not None]


def draw(report: Report, path: Path, results: Path = RESULTS) -> None:
    """Accuracy against products and, where it was measured, against latency; bars from the lowest to the highest seed."""
    macs = {
        name: MACS.scale * spread([one or 0.0 for one in report.values("macs", name)])[0] for name in report.variants
    }
    panels = [("MACs of an image, million", macs)]
    timed = results / f"channel_latency_of_{path.stem}.json"
    if timed.exists():
        rows = json.loads(timed.read_text(encoding="utf-8"))["seconds"]
        panels.append(
            ("ms of a batch of 32, eager, 1 thread", {one: 1e3 * statistics.median(rows[one]) for one in rows})
        )
    with drawn(path, len(panels)) as axes:
        for axis, (label, x) in zip(axes, panels, strict=True):
            mean, low, high = spread(accuracies(report, "dense"))
            axis.axhline(mean, color="0.3", linestyle="--", linewidth=1)
            axis.axhspan(low, high, color="0.3", alpha=0.12, linewidth=0)
            for how, (marker, colour, name) in STYLES.items():
                there = [one for one in report.variants if (one == how or one[:-2] == how) and one in x]
                if there:
                    ys = [accuracies(report, one) for one in there]
                    with_bars(
                        axis, [x[one] for one in there], ys, marker=marker, color=colour, label=name, linestyle=""
                    )
            axis.set(xlabel=label, xlim=(0, None))
        axes[0].set_ylabel("test accuracy, %")
        axes[-1].legend(fontsize=7)


def section(report: Report) -> str:
    """What each net has, and how the goals stand."""
    lines = ["| | MACs of an image | parameters | test accuracy | points above dense |", "|---|---|---|---|---|"]
    for name in report.variants:
        mine, theirs = pairs(report.runs, name, "dense", "final_metric")
        how, _, part = name.rpartition(" ")
        cells = [f"{STYLES[how or part][2]}{f', MACs/{part}' if how else ''}"]
        for quantity in (MACS, PARAMETERS):
            cells.append(quantity.text(statistics.fmean(one or 0.0 for one in report.values(quantity.key, name))))
        cells.append(f"{statistics.fmean(accuracies(report, name)):.2f}%, {len(accuracies(report, name))} seeds")
        cells.append(f"{100 * (statistics.fmean(mine) - statistics.fmean(theirs)):+.2f}" if mine and how else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"- {line}" for line in verdicts(report.runs))])


def main(args: Sequence[str] | None = None) -> None:
    """Run what is missing, then print the table."""
    after = {f"small {part}": f"ours {part}" for part in GOALS}
    folder = functools.partial(usual, "channel_accuracy")
    command("channel_accuracy", folder, VARIANTS, fit, table, args, seeds=SEEDS, after=after, fewer=True)


if __name__ == "__main__":
    main()
