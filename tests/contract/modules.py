"""Modules for the contract suite: ordinary, and with the traps that third-party modules hold. Either namespace."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
import torchmetrics
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def images(samples: int = 24, batch_size: int = 4, *, shuffle: bool = True) -> DataLoader:
    """Loader of (1, 8, 8) images in 3 classes, always the same ones."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(samples, 1, 8, 8, generator=generator)
    y = (x.mean((1, 2, 3)) > 0).long() + (x[:, 0, 0, 0] > 0.5).long()
    return DataLoader(TensorDataset(x, y), batch_size=batch_size, shuffle=shuffle)


def make(kind: str, ns: ModuleType) -> Any:
    """A module of that kind, seeded, of namespace ``ns`` (``lightning.pytorch`` or ``pytorch_lightning``)."""
    torch.manual_seed(3)
    return _classes(ns)[kind]()


KINDS = ("plain", "scheduled", "manual", "two_optimizers", "raw_step")

_cache: dict[str, dict[str, type]] = {}


def _classes(ns: ModuleType) -> dict[str, type]:
    if ns.__name__ not in _cache:
        _cache[ns.__name__] = _build(ns)
    return _cache[ns.__name__]


def _build(ns: ModuleType) -> dict[str, type]:
    class Plain(ns.LightningModule):
        """Convolution, batch norm, dropout; five logs."""

        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(
                nn.Conv2d(1, 8, 3, padding=1, bias=False),
                nn.BatchNorm2d(8),
                nn.ReLU(),
                nn.Dropout(0.1),
                nn.Conv2d(8, 8, 3, stride=2, padding=1),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(8 * 16, 3),
            )
            self.acc = torchmetrics.classification.MulticlassAccuracy(3)
            self.val_acc = torchmetrics.classification.MulticlassAccuracy(3)
            self.losses: list[float] = []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)

        def loss(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
            x, y = batch
            logits = self(x)
            return nn.functional.cross_entropy(logits, y), logits

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            loss, logits = self.loss(batch)
            self.acc(logits, batch[1])
            self.log("loss", loss, prog_bar=True)
            self.log("loss_epoch", loss, on_step=False, on_epoch=True)
            self.log("acc", self.acc, on_step=True, on_epoch=True)
            self.log_dict({"norm": logits.norm(), "index": float(batch_idx)})
            self.losses.append(float(loss.detach()))
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            loss, logits = self.loss(batch)
            self.val_acc(logits, batch[1])
            self.log("val_loss", loss)
            self.log("val_acc", self.val_acc)

        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.log("test_loss", self.loss(batch)[0])

        def predict_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return self(batch[0])

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=1e-2)

    class Scheduled(Plain):
        """Two groups with a ratio, a per-step scheduler sized by the run, a frozen parameter."""

        def configure_optimizers(self) -> Any:
            self.net[1].bias.requires_grad_(False)
            head = list(self.net[-1].parameters())
            body = [p for p in self.net[:-1].parameters() if p.requires_grad]
            optimizer = torch.optim.Adam([{"params": body}, {"params": head, "lr": 1e-3}], lr=1e-2)
            total = int(self.trainer.estimated_stepping_batches)
            scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=total)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    class Manual(Plain):
        """One optimizer stepped by hand."""

        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers()
            loss = super().training_step(batch, batch_idx)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    class TwoOptimizers(Plain):
        """Two optimizers stepped by hand, one of them every second batch."""

        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
            body, head = self.optimizers()
            loss, _ = self.loss(batch)
            body.zero_grad()
            head.zero_grad()
            self.manual_backward(loss)
            body.step()
            if batch_idx % 2:
                head.step()
            self.log("loss", loss, on_epoch=True)
            self.losses.append(float(loss.detach()))
            return {}

        def configure_optimizers(self) -> Any:
            body = torch.optim.AdamW(self.net[:-1].parameters(), lr=1e-2)
            head = torch.optim.SGD(self.net[-1].parameters(), lr=1e-2, momentum=0.9)
            return [body, head]

    class RawStep(Plain):
        """Holds a raw optimizer made in ``__init__`` and steps that; ``optimizers`` is a property, as some packages do."""

        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.raw = torch.optim.SGD(self.net.parameters(), lr=1e-2)

        @property
        def optimizers(self) -> Any:
            return self.raw

        def training_step(self, batch: Any, batch_idx: int) -> None:
            loss = super().training_step(batch, batch_idx)
            self.raw.zero_grad()
            loss.backward()
            self.raw.step()

        def configure_optimizers(self) -> Any:
            return self.raw

    return {
        "plain": Plain,
        "scheduled": Scheduled,
        "manual": Manual,
        "two_optimizers": TwoOptimizers,
        "raw_step": RawStep,
    }
