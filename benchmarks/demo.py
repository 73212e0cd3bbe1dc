"""``make demo``: the image recipe as plain Lightning and with our callbacks, 3 paired seeds, under 6 minutes.

Prints one before/after table and where the time goes in both; writes ``demo_report/report.json`` and ``report.html``.
"""

from __future__ import annotations

from pathlib import Path

from lightning_perf.cli.compare_command import compare_configs
from lightning_perf_recipes.image_classification.data import FashionMNISTData

RECIPE = Path("recipes/image_classification")
TARGET = 0.70
OVERRIDES = (
    "--trainer.max_epochs=1",
    "--trainer.limit_val_batches=2",
    "--trainer.num_sanity_val_steps=0",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.enable_checkpointing=false",
    "--trainer.logger=false",
)


def main() -> None:
    """Compare, print, write."""
    data = FashionMNISTData()
    data.prepare_data()
    data.setup("fit")
    steps = min(60, len(data.train_dataloader()))
    overrides = [
        *OVERRIDES,
        f"--trainer.limit_train_batches={steps}",
        f"--trainer.val_check_interval={min(10, steps // 3)}",
    ]
    if steps < 60:
        print(
            "Fashion-MNIST is not to be had here; these are scikit-learn's digits, and the numbers say nothing about it."
        )
    print("Training ResNet-20 six times, three as plain Lightning and three with our callbacks; about 4 minutes.")
    report = compare_configs(
        [RECIPE / "baseline.yaml", RECIPE / "fast.yaml"],
        pairs=3,
        target=TARGET,
        metric="val_acc",
        overrides=overrides,
        title="image recipe: plain Lightning vs with our callbacks",
        quiet=True,
        phases=True,
    )
    print(report.table())
    for line in dict.fromkeys(note for run in report.runs_of("fast") for note in run.notes):
        print(f"  {line}")
    folder = Path("demo_report")
    report.to_json(folder / "report.json")
    print(f"page with plots: {report.to_html(folder / 'report.html')}; raw samples: {folder / 'report.json'}")
    print(f"reproduce: lightning-perf fit --config {report.configs['fast']}")


if __name__ == "__main__":
    main()
