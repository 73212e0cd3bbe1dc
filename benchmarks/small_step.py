"""A small MLP, 5 logged metrics: lossless() vs plain, samples per second, where the Trainer weighs as much as the model.

    python -m benchmarks.small_step

The module logs as the documentation of Lightning teaches: the loss per step and per epoch in the progress bar, and four
more values. As many threads as torch chooses. The raw step (forward, backward, AdamW, no Trainer) is to take about 1 ms;
what it takes here is in the notes of the report. Goal: >= 2x.
"""

from __future__ import annotations

import dataclasses
import logging
import time
import warnings
from statistics import median
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_perf as lp
from benchmarks.goals import Goal, publish, quiet_trainer

PAIRS = 12
STEPS = 400
BATCH = 32


class MLP(pl.LightningModule):
    """784-64-64-10 on batches of 32: an ordinary module that knows nothing of lightning_perf."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Cross entropy; five logs."""
        x, y = batch
        logits = self.net(x)
        loss = nn.functional.cross_entropy(logits, y)
        free = logits.detach()
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        self.log("train_acc", (free.argmax(-1) == y).float().mean(), on_step=False, on_epoch=True)
        self.log("logit_max", free.amax())
        self.log("logit_mean", free.mean())
        self.log("logit_norm", free.norm())
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
        y = torch.randint(0, 10, (BATCH * STEPS + 2048,), generator=generator)
        x = centres[y] * 0.1 + torch.randn(len(y), 784, generator=generator)
        self.train, self.val = TensorDataset(x[2048:], y[2048:]), TensorDataset(x[:2048], y[:2048])

    def train_dataloader(self) -> DataLoader:
        """Training batches."""
        return DataLoader(self.train, batch_size=BATCH, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """Batches of 512."""
        return DataLoader(self.val, batch_size=512)


def variant(callbacks: list[Any]) -> tuple[Any, ...]:
    """One run's Trainer, module and data."""
    return quiet_trainer(callbacks), MLP(), Data()


def raw_milliseconds(steps: int = 300) -> float:
    """Median of the same step in a plain loop."""
    module = MLP()
    optimizer = module.configure_optimizers()
    x, y = torch.randn(BATCH, 784), torch.randint(0, 10, (BATCH,))
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        optimizer.zero_grad()
        nn.functional.cross_entropy(module.net(x), y).backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    return median(seconds) * 1e3


def main() -> None:
    """Compare and publish."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    report = lp.compare(
        {"plain": lambda: variant([]), "lossless()": lambda: variant(lp.lossless())},
        pairs=PAIRS,
        title="small MLP, 5 logged metrics",
    )
    note = f"Raw step without a Trainer (forward, backward, AdamW): {raw_milliseconds():.2f} ms."
    report = dataclasses.replace(report, notes=(note, *report.notes))
    publish(report, "small_step", [Goal("samples_per_second", "lossless()", 2.0)])


if __name__ == "__main__":
    main()
