"""Modules for the tests of the callback: ordinary data, awkward ways to use it."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


def images(samples: int = 32, batch_size: int = 8, *, shuffle: bool = False) -> DataLoader:
    """(1, 8, 8) images in 2 classes that a small net can tell apart."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(samples, 1, 8, 8, generator=generator)
    return DataLoader(TensorDataset(x, (x.mean((1, 2, 3)) > 0).long()), batch_size, shuffle=shuffle)


def make(ns: ModuleType, **options: Any) -> Any:
    """A classifier of namespace ``ns``: conv, batch norm, relu, linear; keywords in forward, control flow by data."""

    class Net(ns.LightningModule):
        def __init__(self, nan: bool = False, lr: float = 1e-2) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
            self.deep, self.rare = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 4)
            self.head = nn.Linear(4, 2)
            self.nan, self.lr = nan, lr
            self.seen: list[tuple[str, float]] = []

        def forward(self, *, image: Tensor, scale: float = 1.0) -> Tensor:
            x = F.relu(self.bn(self.conv(image * scale)))
            if x.mean() > -1:  # neither torch.export nor torch.fx follow
                x = F.relu(self.deep(x))
            x = x.mean((2, 3))
            return self.head(self.rare(x) if x.mean() > 1e3 else x)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            image, label = batch
            if self.nan:
                image = image * float("nan")
            loss = F.cross_entropy(self(image=image), label)
            self.log("loss", loss)
            self.seen.append(("train", float(loss.detach())))
            return {"loss": loss}

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            logits = self(image=batch[0])
            self.log("val_loss", F.cross_entropy(logits, batch[1]))
            self.log("val_acc", (logits.argmax(1) == batch[1]).float().mean())

        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.log("test_loss", F.cross_entropy(self(image=batch[0]), batch[1]))

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=self.lr)

    torch.manual_seed(3)
    return Net(**options)
