"""``make bench``: every benchmark, one after the other, on a quiet machine; then the README's table."""

from __future__ import annotations

import subprocess
import sys

NAMES = (
    "self_log",
    "profiler_overhead",
    "optimizer_step",
    "optimizer_zoo",
    "small_step",
    "demos",
    "image_recipe",
    "language_recipe",
    "averaged_weights",
    "range_test",
    "qat_step",
    "auto_default",
    "advice",
    "time_to_target",
    "mask_cost",
    "ddp",
    "ddp_quality",
    "ddp_scaling",
    "csr_inference",
    "pruning_accuracy",
    "channel_accuracy",
    "channel_perplexity",
    "channel_latency",
    "runtimes",
    "serving",
    "wild_table",
    "readme",
)


def main() -> None:
    """Run each in a process of its own, so that none inherits another's heap or threads."""
    for name in NAMES:
        print(f"== benchmarks.{name}", flush=True)
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=True)


if __name__ == "__main__":
    main()
