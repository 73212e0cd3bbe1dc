"""The image recipe, ResNet-20 on batches of 128, 2 threads: lossless.yaml and fast.yaml vs baseline.yaml.

    python -m benchmarks.image_recipe

Every run has a process of its own. Goals: >= 1.3x and >= 1.9x samples per second, accuracy within seed noise. Both were set
on a machine whose CPU computes bfloat16 natively and has AVX-512; what the CPU at hand has is written beside the result.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.goals import Goal, publish
from lightning_perf.cli.compare_command import compare_configs
from lightning_perf.hardware import bfloat16_is_native, cpu_flags

PAIRS = 8
RECIPE = Path("recipes/image_classification")
OVERRIDES = (
    "--trainer.limit_train_batches=60",
    "--trainer.limit_val_batches=2",
    "--trainer.max_epochs=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.enable_checkpointing=false",
    "--trainer.logger=false",
)


def main() -> None:
    """Compare and publish."""
    report = compare_configs(
        [RECIPE / "baseline.yaml", RECIPE / "lossless.yaml", RECIPE / "fast.yaml"],
        pairs=PAIRS,
        overrides=OVERRIDES,
        title="image recipe, ResNet-20, batch 128",
        quiet=True,
    )
    flags = cpu_flags()
    print(f"CPU: avx512 {any(flag.startswith('avx512') for flag in flags)}, native bfloat16 {bfloat16_is_native()}")
    goals = [Goal("samples_per_second", "lossless", 1.3), Goal("samples_per_second", "fast", 1.9)]
    publish(report, "image_recipe", goals)


if __name__ == "__main__":
    main()
