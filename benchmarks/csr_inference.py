"""Linear layers by rows without their zeros (``pruning.csr_copy``) against dense ones on the CPU, by sparsity.

    python -m benchmarks.csr_inference

A layer of 1024 x 1024, batches of 1 and 64, one thread, interleaved. No goals: it decides what the guide says.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.goals import RESULTS
from lightning_perf import hardware, measuring
from lightning_perf.pruning import csr_copy

SIZE, REPEATS, ROUNDS = 1024, 40, 21
SPARSITIES = (0.5, 0.8, 0.9, 0.95, 0.99)
BATCHES = (1, 64)


@torch.inference_mode()
def measure(sparsity: float, batch: int) -> dict[str, Any]:
    """Speed of the sparse copy over the dense layer, and the sizes of their weights."""
    torch.manual_seed(0)
    layer = nn.Linear(SIZE, SIZE)
    layer.weight.mul_(torch.rand(SIZE, SIZE) >= sparsity)
    sparse, x = csr_copy(layer, min_sparsity=0.0), torch.randn(batch, SIZE)

    def run(net: nn.Module) -> None:
        for _ in range(REPEATS):
            net(x)

    seconds = measuring.interleave({"dense": lambda: run(layer), "csr": lambda: run(sparse)}, rounds=ROUNDS, warmup=1)
    ratio = measuring.paired_ratio(seconds["dense"], seconds["csr"])
    return {"sparsity": sparsity, "batch": batch, "speed": [ratio.estimate, ratio.low, ratio.high], "samples": seconds}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser("python -m benchmarks.csr_inference")
    parser.add_argument("--out", type=Path, default=RESULTS / "csr_inference.json", help="file to write")
    known = parser.parse_args()
    torch.set_num_threads(1)
    with measuring.watch_contention() as watch:
        rows = [measure(sparsity, batch) for batch in BATCHES for sparsity in SPARSITIES]
    for row in rows:
        estimate, low, high = row["speed"]
        print(f"batch {row['batch']:3}, {row['sparsity']:.0%} zeros: {estimate:.2f}x [{low:.2f}, {high:.2f}] of dense")
    print(watch.result.sentence())
    result = {
        "benchmark": "csr_inference",
        "machine": hardware.machine(),
        "versions": hardware.versions(),
        "contention": watch.result.sentence(),
        "rows": rows,
    }
    known.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
