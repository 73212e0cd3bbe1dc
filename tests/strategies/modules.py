"""Modules with what can go wrong between processes; either namespace."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def rows(samples: int = 24, batch_size: int = 2, *, shuffle: bool = True) -> DataLoader:
    """Loader of (x, y) with its own index beside it, always the same ones."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(samples, 6, generator=generator)
    y = x[:, :1].sin() + 0.1 * torch.randn(samples, 1, generator=generator)
    return DataLoader(TensorDataset(x, y, torch.arange(samples)), batch_size=batch_size, shuffle=shuffle)


def make(kind: str, ns: ModuleType, **options: Any) -> Any:
    """A module of that kind, seeded, of namespace ``ns``."""
    torch.manual_seed(3)
    return _build(ns)[kind](**options)


def _build(ns: ModuleType) -> dict[str, type]:
    class Plain(ns.LightningModule):
        """A norm, dropout that differs between processes, a constant buffer, five values logged with ``sync_dist``."""

        def __init__(self, optimizer: str = "adamw") -> None:
            super().__init__()
            self.optimizer = optimizer
            self.net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 1))
            self.register_buffer("mask", torch.ones(6))
            self.seen: list[float] = []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x * self.mask)

        def loss(self, batch: Any) -> torch.Tensor:
            return nn.functional.mse_loss(self(batch[0]), batch[1])

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self.loss(batch)
            self.log("loss", loss, sync_dist=True, on_step=True, on_epoch=True)
            self.log("first", batch[0][0, 0], sync_dist=True, reduce_fx="max", on_step=True, on_epoch=True)
            self.log("least", batch[0][0, 0], sync_dist=True, reduce_fx="min", on_step=True)
            self.log("total", batch[0].sum().double(), sync_dist=True, reduce_fx="sum", on_epoch=True)
            self.log("local", loss)
            self.seen.append(float(loss.detach()))
            return loss

        def on_train_batch_end(self, *args: Any) -> None:
            self.seen += [float(value) for _, value in sorted(self.trainer.callback_metrics.items())]

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.loss(batch), sync_dist=True)
            self.log("val_size", float(len(batch[0])), sync_dist=True, reduce_fx="sum")

        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.log("test_loss", self.loss(batch), sync_dist=True)
            self.seen += batch[2].tolist()

        def predict_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return batch[2]

        def configure_optimizers(self) -> Any:
            parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
            if self.optimizer == "sgd":
                return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
            return torch.optim.AdamW(parameters, lr=1e-2)

    class Unused(Plain):
        """A layer that takes no part in the loss."""

        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.spare = nn.Linear(6, 6)

    class UnusedFirst(Unused):
        """The same in front of all others, where DDP's last bucket begins."""

        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            net = self.net
            del self.net
            self.net = net

    class Tied(Plain):
        """One weight in two places."""

        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
            self.second.weight = self.first.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(self.second(self.first(x)))

    class Complex(Plain):
        """Complex weights, whose gradients DDP keeps as pairs of numbers."""

        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.phases = nn.Parameter(torch.randn(6, 6, dtype=torch.cfloat))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward((x.to(torch.cfloat) @ self.phases).abs())

    class Changing(Plain):
        """Buffers that every process changes in its own way and reads: one from the first step, one from epoch 1."""

        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.register_buffer("centre", torch.zeros(6))
            self.register_buffer("late", torch.zeros(6))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                self.centre.mul_(0.9).add_(x.mean(0), alpha=0.1)
                if self.current_epoch >= 1:
                    self.late = self.late * 0.5 + x[0]
            return super().forward(x - self.centre + self.late)

    class Frozen(Plain):
        """A norm that evaluates from the fifth batch on, while the rest still trains."""

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if self.current_epoch or batch_idx >= 4:
                self.net[1].eval()

    class Teacher(Plain):
        """Evaluates itself in the midst of a training step."""

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            loss = super().training_step(batch, batch_idx)
            self.net.eval()
            with torch.no_grad():
                target = self(batch[0])
            self.net.train()
            return loss + nn.functional.mse_loss(self(batch[0]), target)

    class TwoOptimizers(Plain):
        """Two optimizers stepped by hand, one of them every second batch."""

        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            body, head = self.optimizers()
            loss = super().training_step(batch, batch_idx)
            body.zero_grad()
            head.zero_grad()
            self.manual_backward(loss)
            body.step()
            if batch_idx % 2:
                head.step()

        def configure_optimizers(self) -> Any:
            body = torch.optim.AdamW(self.net[:-1].parameters(), lr=1e-2)
            return [body, torch.optim.SGD(self.net[-1].parameters(), lr=1e-2, momentum=0.9)]

    return {
        cls.__name__: cls
        for cls in (Plain, Unused, UnusedFirst, Tied, Complex, Changing, Frozen, Teacher, TwoOptimizers)
    }
