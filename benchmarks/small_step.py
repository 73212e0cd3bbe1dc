"""An MLP whose raw compute is about 1 ms a step, with 5 logged metrics: lossless() vs plain, samples per second.

    python -m benchmarks.small_step

The module logs as the documentation of Lightning teaches: the loss per step and per epoch in the progress bar, and four
more values. Two threads as torch chooses. Goal: >= 2x.
"""

from __future__ import annotations

import logging
import warnings
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_perf as lp
from benchmarks.goals import Goal, publish

PAIRS = 12
STEPS = 400


class MLP(pl.LightningModule):
    """784-128-128-10 on batches of 64: an ordinary module that knows nothing of lightning_perf."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Cross entropy; five logs."""
        x, y = batch
        logits = self.net(x)
        loss = nn.functional.cross_entropy(logits, y)
        probabilities = logits.detach().softmax(-1)
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        self.log("train_acc", (logits.argmax(-1) == y).float().mean(), on_step=False, on_epoch=True)
        self.log("confidence", probabilities.amax(-1).mean())
        self.log("entropy", -(probabilities * probabilities.clamp_min(1e-9).log()).sum(-1).mean())
        self.log("logit_norm", logits.detach().norm())
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Accuracy."""
        x, y = batch
        self.log("val_acc", (self.net(x).argmax(-1) == y).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class Data(pl.LightningDataModule):
    """Ten seeded Gaussian classes."""

    def setup(self, stage: str) -> None:
        """Draw the data."""
        generator = torch.Generator().manual_seed(0)
        centres = torch.randn(10, 784, generator=generator)
        y = torch.randint(0, 10, (64 * STEPS + 2048,), generator=generator)
        x = centres[y] * 0.1 + torch.randn(len(y), 784, generator=generator)
        self.train, self.val = TensorDataset(x[2048:], y[2048:]), TensorDataset(x[:2048], y[:2048])

    def train_dataloader(self) -> DataLoader:
        """Batches of 64."""
        return DataLoader(self.train, batch_size=64, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """Batches of 512."""
        return DataLoader(self.val, batch_size=512)


def variant(callbacks: list[Any]) -> tuple[Any, ...]:
    """One run's Trainer, module and data."""
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
    )
    return trainer, MLP(), Data()


def main() -> None:
    """Compare and publish."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    report = lp.compare(
        {"plain": lambda: variant([]), "lossless()": lambda: variant(lp.lossless())},
        pairs=PAIRS,
        title="MLP, 1 ms of compute a step, 5 logged metrics",
    )
    publish(report, "small_step", [Goal("samples_per_second", "lossless()", 2.0)])


if __name__ == "__main__":
    main()
