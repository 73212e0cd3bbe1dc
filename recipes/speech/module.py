"""An ordinary classifier of spoken words, as one would write it from the documentation of Lightning."""

from __future__ import annotations

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

from .networks import TemporalResNet


class KeywordSpotter(L.LightningModule):
    """A residual network over time, cross entropy and AdamW; batches are (levels (B, mels, T) in dB, labels (B,) int64).

    Logs `train_loss`, `train_acc`, `val_loss`, `val_acc`, `test_loss` and `test_acc`.

    Raises:
        ValueError: `kernel` is even; a batch with another number of mel bands, or with a label beyond `num_classes`.

    Example::

        >>> import torch
        >>> KeywordSpotter(num_classes=35)(torch.zeros(2, 40, 101)).shape
        torch.Size([2, 35])
    """

    def __init__(
        self,
        mels: int = 40,
        num_classes: int = 10,
        width: int = 16,
        kernel: int = 9,
        dropout: float = 0.1,
        lr: float = 1e-3,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"kernel={kernel} is even and has no middle: choose {kernel + 1}.")
        self.save_hyperparameters()
        self.mels = mels
        self.num_classes = num_classes
        self.lr = lr
        self.weight_decay = weight_decay
        self.net = TemporalResNet(mels, num_classes, width, kernel, dropout)
        self.train_acc = MulticlassAccuracy(num_classes, average="micro")
        self.val_acc = MulticlassAccuracy(num_classes, average="micro")
        self.test_acc = MulticlassAccuracy(num_classes, average="micro")

    def forward(self, levels: Tensor) -> Tensor:
        """Logits (B, num_classes) of log-mel levels (B, mels, T)."""
        if levels.shape[1] != self.mels:
            raise ValueError(
                f"spectra of {levels.shape[1]} bands do not fit mels={self.mels}: give model and data the same "
                f"(on the command line --model.init_args.mels={levels.shape[1]})."
            )
        return self.net(levels)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        levels, labels = batch
        logits = self(levels)
        loss = self._loss(logits, labels)
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        self.train_acc(logits, labels)
        self.log("train_acc", self.train_acc, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        levels, labels = batch
        logits = self(levels)
        self.log("val_loss", self._loss(logits, labels), prog_bar=True, sync_dist=True)
        self.val_acc(logits, labels)
        self.log("val_acc", self.val_acc, prog_bar=True)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        levels, labels = batch
        logits = self(levels)
        self.log("test_loss", self._loss(logits, labels), sync_dist=True)
        self.test_acc(logits, labels)
        self.log("test_acc", self.test_acc)

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Class probabilities (B, num_classes); the labels of the batch are not looked at."""
        levels, _ = batch
        return self(levels).softmax(dim=-1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        # Only where looking does not wait for a device; a GPU ends with an assertion of its own.
        highest = int(labels.max()) if labels.device.type == "cpu" else 0
        if highest >= self.num_classes:
            raise ValueError(
                f"label {highest} does not fit num_classes={self.num_classes}: give the model as many classes as the data "
                f"has words (on the command line --model.init_args.num_classes={highest + 1}, or more)."
            )
        return F.cross_entropy(logits, labels)
