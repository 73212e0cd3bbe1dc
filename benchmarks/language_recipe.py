"""The language model recipe, batches of 32 blocks of 128 bytes: lossless.yaml and fast.yaml vs baseline.yaml.

    python -m benchmarks.language_recipe

Every run has a process of its own. No goal was set for this recipe; what is found is published.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.goals import publish
from lightning_perf.cli.compare_command import compare_configs

PAIRS = 6
RECIPE = Path("recipes/language_model")
OVERRIDES = (
    "--trainer.limit_train_batches=60",
    "--trainer.limit_val_batches=4",
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
        metric="val_loss",
        overrides=OVERRIDES,
        title="language model recipe",
        quiet=True,
    )
    publish(report, "language_recipe", [])


if __name__ == "__main__":
    main()
