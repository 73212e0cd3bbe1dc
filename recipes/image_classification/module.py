"""An ordinary image classifier, as one would write it from the documentation of Lightning."""

from __future__ import annotations

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score, MulticlassPrecision

from .networks import build


class ImageClassifier(L.LightningModule):
    """A network by name, cross entropy and AdamW; batches are (images (B, C, H, W) float, labels (B,) int64).

    Logs `train_loss`, `train_acc`, `train_top3`, `train_f1`, `train_precision`, `val_loss`, `val_acc`, `test_loss`
    and `test_acc`. With fewer than three classes `train_top3` counts the best two.

    Raises:
        ValueError: `network` is not a known name (`resnet18`, `resnet20`, `vit`).

    Example::

        >>> import torch
        >>> ImageClassifier("resnet20")(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        network: str = "resnet20",
        num_classes: int = 10,
        in_channels: int = 1,
        lr: float = 1e-3,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lr = lr
        self.weight_decay = weight_decay
        self.net = build(network, in_channels, num_classes)

        self.train_acc = MulticlassAccuracy(num_classes, average="micro")
        self.train_top3 = MulticlassAccuracy(num_classes, top_k=min(3, num_classes), average="micro")
        self.train_f1 = MulticlassF1Score(num_classes, average="macro")
        self.train_precision = MulticlassPrecision(num_classes, average="macro")
        self.val_acc = MulticlassAccuracy(num_classes, average="micro")
        self.test_acc = MulticlassAccuracy(num_classes, average="micro")

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of float images (B, C, H, W)."""
        return self.net(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        logits = self(images)
        loss = F.cross_entropy(logits, labels)
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True)

        self.train_acc(logits, labels)
        self.log("train_acc", self.train_acc, on_step=True, on_epoch=True, prog_bar=True)
        self.train_top3(logits, labels)
        self.log("train_top3", self.train_top3, on_step=False, on_epoch=True)
        self.train_f1(logits, labels)
        self.log("train_f1", self.train_f1, on_step=True, on_epoch=False)
        self.train_precision(logits, labels)
        self.log("train_precision", self.train_precision, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        logits = self(images)
        self.log("val_loss", F.cross_entropy(logits, labels), prog_bar=True, sync_dist=True)
        self.val_acc(logits, labels)
        self.log("val_acc", self.val_acc, prog_bar=True)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        logits = self(images)
        self.log("test_loss", F.cross_entropy(logits, labels), sync_dist=True)
        self.test_acc(logits, labels)
        self.log("test_acc", self.test_acc)

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Class probabilities (B, num_classes); the labels of the batch are not looked at."""
        images, _ = batch
        return self(images).softmax(dim=-1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)
