"""The four tasks of ``benchmarks.time_to_target``: each gives a module and its loaders, new at every call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, TensorDataset

from lightning_perf_recipes.image_classification import files
from lightning_perf_recipes.image_classification.data import FashionMNISTData
from lightning_perf_recipes.image_classification.module import ImageClassifier
from lightning_perf_recipes.language_model.data import TextData
from lightning_perf_recipes.language_model.module import LanguageModel

SPLIT_SEED = 0


class Classifier(pl.LightningModule):
    """A network and cross entropy; logs ``val_acc`` and ``val_loss``."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        logits = self.net(batch[0])
        self.log("val_loss", nn.functional.cross_entropy(logits, batch[1]), batch_size=len(batch[1]))
        self.log("val_acc", (logits.argmax(1) == batch[1]).float().mean(), batch_size=len(batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class Loaders(pl.LightningDataModule):
    """Tensors in memory, cut into batches by one indexing each, so that the optimizer is not lost in the loading."""

    def __init__(self, train: TensorDataset, val: TensorDataset, batch_size: int) -> None:
        super().__init__()
        self.train, self.val, self.batch_size = train, val, batch_size

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(
            self.train, sampler=BatchSampler(RandomSampler(self.train), self.batch_size, True), batch_size=None
        )

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.val, sampler=BatchSampler(SequentialSampler(self.val), 1000, False), batch_size=None)


def fashion() -> tuple[Any, Any]:
    """Fashion-MNIST, 2x2-average-pooled to 14x14: 55k of the training file, 2000 others of it for validation."""
    folder = files.find([files.DEBIAN, files.cache_folder()])
    if folder is None:
        raise FileNotFoundError("Fashion-MNIST is not here; fetch it once with the image recipe (FashionMNISTData).")
    images, labels = files.read(folder, "train")
    pooled = nn.functional.avg_pool2d((images.unsqueeze(1).float() / 255 - 0.286) / 0.353, 2)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SPLIT_SEED))
    train, val = order[:55_000], order[55_000:57_000]
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 16, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    parts = (TensorDataset(pooled[part], labels[part]) for part in (train, val))
    return Classifier(net), Loaders(*parts, batch_size=64)


def image() -> tuple[Any, Any]:
    """The image recipe's ResNet-20 on batches of 64."""
    return ImageClassifier(), FashionMNISTData(batch_size=64, eval_batch_size=512)


def language() -> tuple[Any, Any]:
    """The language model recipe on 32 blocks of 64 bytes."""
    return LanguageModel(block_size=64), TextData(block_size=64, batch_size=32, eval_batch_size=64)


def tabular() -> tuple[Any, Any]:
    """scikit-learn's digits as a table of 64 columns, standardised: 1397 rows, 400 others for validation; an MLP."""
    from sklearn.datasets import load_digits

    columns, labels = load_digits(return_X_y=True)
    x = torch.as_tensor(columns, dtype=torch.float32)
    y = torch.as_tensor(labels, dtype=torch.int64)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(SPLIT_SEED))
    train, val = order[:1397], order[1397:]
    x = (x - x[train].mean(0)) / (x[train].std(0) + 1e-6)
    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    return Classifier(net), Loaders(TensorDataset(x[train], y[train]), TensorDataset(x[val], y[val]), batch_size=32)


@dataclass(frozen=True)
class Task:
    """One task, frozen before the first comparison.

    ``target`` None is the worst end of the constant Adam that ends best, known once its runs exist.
    """

    name: str
    make: Callable[[], tuple[Any, Any]]
    steps: int
    every: int
    metric: str
    mode: str
    threads: int
    target: float | None = None
    trainer: tuple[tuple[str, Any], ...] = ()


TASKS = {
    task.name: task
    for task in (
        Task("fashion", fashion, 500, 20, "val_acc", "max", threads=1, target=0.85),
        Task("image", image, 200, 20, "val_acc", "max", threads=2, trainer=(("limit_val_batches", 4),)),
        Task("language", language, 300, 20, "val_loss", "min", threads=2, trainer=(("limit_val_batches", 4),)),
        Task("tabular", tabular, 300, 10, "val_acc", "max", threads=1),
    )
}
