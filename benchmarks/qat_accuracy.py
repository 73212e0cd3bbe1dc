"""What int8 costs in accuracy: ResNet-20 on Fashion-MNIST and the language recipe, float against PTQ and QAT.

    python -m benchmarks.qat_accuracy             # runs what has no result file yet; may be stopped
    python -m benchmarks.qat_accuracy --table     # the table of what there is

One run is one task and one seed, about 10 minutes on one thread: float training (3 epochs of images, 5 of text, AdamW,
one cycle to 3e-3), then from those weights one more epoch at 3e-4 in float, and the same epoch, same batches, with
``QuantizationAwareTraining("int8")``. ``PTQ`` is ``lp.quantize`` of the float net after its last epoch, calibrated on four
training batches. Training is short: the difference is the subject, not the level. int8 nets are evaluated with stored
integers (``to_qdq``), on the same items as float: all 10,000 test images, all validation blocks. Three seeds.

Goals, mean over seeds, QAT: drop <= 0.2 points of accuracy; perplexity <= 0.5 % higher.
"""

from __future__ import annotations

import argparse
import copy
import logging
import math
import statistics
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lightning_perf as lp
from benchmarks.goals import RESULTS, quiet_trainer
from lightning_perf.host import seed_everything
from lightning_perf.quantization import to_qdq
from lightning_perf.report import FINAL_ACCURACY, Quantity, Report, Run, json_text
from lightning_perf_recipes.image_classification.data import FashionMNISTData
from lightning_perf_recipes.image_classification.module import ImageClassifier
from lightning_perf_recipes.language_model.data import TextData
from lightning_perf_recipes.language_model.module import LanguageModel

FOLDER = RESULTS / "qat_accuracy"
SEEDS = 3
EPOCHS = {"image": 3, "language": 5}
VARIANTS = ("float", "PTQ int8", "QAT int8")
PERPLEXITY = Quantity("perplexity", "perplexity", "", better="lower", digits=4, kind="quality")
GOALS = {"image": 0.2, "language": 0.5}  # points; per cent


def parts(task: str) -> tuple[Any, Any]:
    """A fresh module and its data."""
    if task == "image":
        return ImageClassifier(), FashionMNISTData()
    return LanguageModel(lr=3e-3, warmup_steps=0), TextData()


def fit(module: Any, data: Any, epochs: int, lr: float, callbacks: Sequence[Any], batches: int | None) -> None:
    """Train, one cycle to ``lr``; the same batches for every call with the same seed before it."""
    factory = lp.OptimizerFactory("adamw", lr=lr, schedule="one_cycle")
    settings: dict[str, Any] = {"max_epochs": epochs, "limit_val_batches": 0, "num_sanity_val_steps": 0}
    if batches is not None:
        settings["limit_train_batches"] = batches
    quiet_trainer([factory, lp.ChannelsLast(), *callbacks], **settings).fit(module, datamodule=data)


@torch.no_grad()
def answers(module: nn.Module, data: Any, task: str, batches: int | None) -> Tensor:
    """By item: whether the image was classified right, or the cross entropy of the block."""
    module.eval()
    found = []
    for index, (inputs, targets) in enumerate(data.test_dataloader() if task == "image" else data.val_dataloader()):
        if index == batches:
            break
        logits = module(inputs)
        if task == "image":
            found.append((logits.argmax(1) == targets).double())
        else:
            found.append(F.cross_entropy(logits.transpose(1, 2), targets, reduction="none").double().mean(1))
    return torch.cat(found)


def run_one(task: str, seed: int, batches: int | None) -> dict[str, Any]:
    """All three variants of one task and seed."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    seed_everything(seed)
    module, data = parts(task)
    fit(module, data, EPOCHS[task], 3e-3, [], batches)
    trained = {}
    for name, callbacks in (("float", []), ("QAT int8", [lp.QuantizationAwareTraining("int8")])):
        trained[name] = copy.deepcopy(module)
        seed_everything(100 + seed)
        fit(trained[name], data, 1, 3e-4, callbacks, batches)
    calibration = [inputs for (inputs, _), _ in zip(data.train_dataloader(), range(4), strict=False)]
    ptq = copy.deepcopy(trained["float"])
    lp.quantize(ptq.net, calibration)
    nets = {"float": trained["float"], "PTQ int8": to_qdq(ptq), "QAT int8": to_qdq(trained["QAT int8"])}
    if task == "image":
        data.setup("test")
    items = {name: answers(net, data, task, batches) for name, net in nets.items()}
    result: dict[str, Any] = {
        "task": task,
        "seed": seed,
        "seconds": time.perf_counter() - start,
        "written": time.time(),
    }
    for name, found in items.items():
        mean = float(found.mean())
        result[name] = mean if task == "image" else math.exp(mean)
        if task == "image":
            result[f"{name}: lost"] = int(((items["float"] == 1) & (found == 0)).sum())
            result[f"{name}: gained"] = int(((items["float"] == 0) & (found == 1)).sum())
    result["items"] = len(items["float"])
    return result


def run_missing(folder: Path, tasks: Sequence[str], seeds: int, batches: int | None) -> None:
    """Run what has no file, seed by seed."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(seeds):
        for task in tasks:
            path = folder / f"{task}_seed{seed}.json"
            if path.exists():
                continue
            found = run_one(task, seed, batches)
            path.write_text(json_text.dumps(found), encoding="utf-8")
            print(found, flush=True)


def table(folder: Path) -> None:
    """Print the report of each task and how its goal stands."""
    for task, goal in GOALS.items():
        found = [
            json_text.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(f"{task}_seed*.json"))
        ]
        if not found:
            print(f"{task}: no runs yet.")
            continue
        row = FINAL_ACCURACY if task == "image" else PERPLEXITY
        runs = [Run(name, one["seed"], quantities={row.key: one[name]}) for one in found for name in VARIANTS]
        report = Report(f"{task}: int8 against float, {len(found)} of {SEEDS} seeds", "float", runs, [row])
        print(report.table())
        report.to_json(folder.with_name(f"{folder.name}_{task}.json"))
        for name in VARIANTS[1:]:
            if task == "image":
                drop = statistics.fmean(100 * (one["float"] - one[name]) for one in found)
                words = f"{drop:+.3f} points lower"
            else:
                drop = statistics.fmean(100 * (one[name] / one["float"] - 1) for one in found)
                words = f"perplexity {drop:+.3f} % higher"
            limit = f"; goal <= {goal:g}: {'met' if drop <= goal else 'NOT met'}" if name.startswith("QAT") else ""
            print(f"{task}, {name}, {len(found)} of {SEEDS} seeds: {words}{limit}")


def main(args: Sequence[str] | None = None) -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser("python -m benchmarks.qat_accuracy")
    parser.add_argument("--table", action="store_true", help="only print what there is")
    parser.add_argument("--tasks", nargs="+", choices=list(GOALS), default=list(GOALS))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--batches", type=int, help="so many batches an epoch, for a look; needs --folder")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the result files are")
    known = parser.parse_args(args)
    if known.batches is not None and known.folder == FOLDER:
        parser.error(f"--batches {known.batches}: shortened runs are no results; name another --folder.")
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    if not known.table:
        run_missing(known.folder, known.tasks, known.seeds, known.batches)
    table(known.folder)


if __name__ == "__main__":
    main()
