"""What MagnitudePruning costs per training step on the CPU: masks held after every step, against the same steps without.

    python -m benchmarks.mask_cost

ResNet-20 of the image recipe on batches of 128, the recipe's language model on batches of 32, and an MLP whose step takes
about a millisecond; 90 % sparsity, torch's fused AdamW, one thread. Blocks of steps with and without masks alternate on one
module. A selection of new masks, of which a run has a hundred at most, is timed beside it. Goal: <= 3 % a step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.goals import RESULTS
from lightning_perf import hardware, measuring
from lightning_perf.pruning.pruner import Pruner
from lightning_perf.pruning.schedule import UPDATES
from lightning_perf.pruning.targets import find_targets
from lightning_perf_recipes.image_classification.networks import build
from lightning_perf_recipes.language_model.module import LanguageModel

GOAL = 1.03


def image_net() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """ResNet-20 and a batch of random images."""
    return build("resnet20", 1, 10), (torch.randn(128, 1, 28, 28), torch.randint(10, (128,)))


def language_model() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """The recipe's model and a batch of random bytes."""
    return LanguageModel(), (torch.randint(256, (32, 128)), torch.randint(256, (32 * 128,)))


def mlp() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """784-64-64-10 and a batch of 32."""
    net = nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    return net, (torch.randn(32, 784), torch.randint(10, (32,)))


#: Module and batch, steps of a block, pairs of blocks.
CASES: dict[str, tuple[Callable[[], tuple[nn.Module, tuple[Tensor, Tensor]]], int, int]] = {
    "resnet20, batch 128": (image_net, 2, 15),
    "language model, batch 32": (language_model, 1, 12),
    "MLP, batch 32": (mlp, 200, 30),
}


def measure(name: str, pairs: int | None = None) -> dict[str, Any]:
    """One case: milliseconds per step of the blocks without and with masks, and of one selection."""
    make, steps, usual = CASES[name]
    torch.manual_seed(0)
    module, (x, y) = make()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, fused=True)
    pruner = Pruner(find_targets(module).found)

    def step() -> None:
        optimizer.zero_grad()
        logits = module(x)
        nn.functional.cross_entropy(logits.reshape(len(y), -1), y).backward()
        optimizer.step()

    def plain() -> None:
        for _ in range(steps):
            step()

    def masked() -> None:
        handle = optimizer.register_step_post_hook(lambda optimizer, *_: pruner.after_step(optimizer))
        plain()
        handle.remove()

    plain()
    selections = []
    for level in range(1, 10):
        start = time.perf_counter()
        pruner.adopt(pruner.decide(0.1 * level))
        selections.append(1e3 * (time.perf_counter() - start))
    seconds = measuring.interleave({"plain": plain, "masked": masked}, rounds=pairs or usual, warmup=1)
    ratio = measuring.paired_ratio(seconds["masked"], seconds["plain"])
    again = measuring.interleave({"a": plain, "b": plain}, rounds=pairs or usual)
    return {
        "name": name,
        "weights": pruner.total,
        "step_milliseconds": 1e3 * statistics.median(seconds["plain"]) / steps,
        "ratio": [ratio.estimate, ratio.low, ratio.high],
        "resolution": measuring.resolution(again["a"], again["b"]).reach(),
        "selection_milliseconds": statistics.median(selections),
        "samples": {key: [1e3 * value / steps for value in values] for key, values in seconds.items()},
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser("python -m benchmarks.mask_cost")
    parser.add_argument("--pairs", type=int, help="pairs of blocks, for a look; needs --out")
    parser.add_argument("--out", type=Path, default=RESULTS / "mask_cost.json", help="file to write")
    known = parser.parse_args()
    if known.pairs is not None and known.out == RESULTS / "mask_cost.json":
        parser.error(f"--pairs {known.pairs}: shortened runs are no results; name another --out.")
    torch.set_num_threads(1)
    rows = []
    with measuring.watch_contention() as watch:
        for name in CASES:
            row = measure(name, known.pairs)
            rows.append(row)
            low, high = row["ratio"][1:]
            print(
                f"{name:26} {row['step_milliseconds']:8.2f} ms a step, masks {row['ratio'][0]:.4f}x "
                f"[{low:.4f}, {high:.4f}], resolution {row['resolution']:.4f}; a selection over {row['weights']:,} weights "
                f"{row['selection_milliseconds']:.1f} ms, at most {UPDATES} a run; goal <= {GOAL}x: "
                f"{'met' if row['ratio'][0] <= GOAL else 'NOT met'}"
            )
    print(watch.result.sentence())
    result = {
        "benchmark": "mask_cost",
        "goal": f"<= {GOAL}x a step",
        "machine": hardware.machine(),
        "versions": hardware.versions(),
        "contention": watch.result.sentence(),
        "rows": rows,
    }
    known.out.parent.mkdir(parents=True, exist_ok=True)
    known.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
