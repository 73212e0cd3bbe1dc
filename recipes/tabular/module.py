"""An ordinary classifier of table rows, as one would write it from the documentation of Lightning."""

from __future__ import annotations

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy


def mlp(columns: int, width: int, layers: int, outputs: int, dropout: float) -> nn.Sequential:
    """`layers` hidden layers of linear, ReLU and dropout, then a linear head; with no layer the head alone.

    Shapes: (B, columns) float to (B, outputs). After Gorishniy et al. 2021, https://arxiv.org/abs/2106.11959,
    section 3.1.

    Example::

        >>> sum(p.numel() for p in mlp(64, 256, 3, 10, 0.1).parameters())
        150794
    """
    blocks: list[nn.Module] = []
    for before in [columns, *[width] * (layers - 1)][:layers]:
        blocks += [nn.Linear(before, width), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*blocks, nn.Linear(width if layers else columns, outputs))


class TabularClassifier(L.LightningModule):
    """A multilayer perceptron, cross entropy and AdamW; batches are (rows (B, columns) float, labels (B,) int64).

    Logs `train_loss`, `train_acc`, `val_loss`, `val_acc`, `test_loss` and `test_acc`.

    Raises:
        ValueError: a batch with another number of columns.

    Example::

        >>> import torch
        >>> TabularClassifier(columns=30, num_classes=2)(torch.zeros(4, 30)).shape
        torch.Size([4, 2])
    """

    def __init__(
        self,
        columns: int = 64,
        num_classes: int = 10,
        width: int = 256,
        layers: int = 3,
        dropout: float = 0.1,
        lr: float = 1e-3,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.columns = columns
        self.lr = lr
        self.weight_decay = weight_decay
        self.net = mlp(columns, width, layers, num_classes, dropout)
        self.train_acc = MulticlassAccuracy(num_classes, average="micro")
        self.val_acc = MulticlassAccuracy(num_classes, average="micro")
        self.test_acc = MulticlassAccuracy(num_classes, average="micro")

    def forward(self, rows: Tensor) -> Tensor:
        """Logits (B, num_classes) of encoded rows (B, columns)."""
        if rows.shape[-1] != self.columns:
            raise ValueError(
                f"rows of {rows.shape[-1]} columns do not fit columns={self.columns}: build the module with "
                f"columns={rows.shape[-1]} (on the command line --model.init_args.columns={rows.shape[-1]})."
            )
        return self.net(rows)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        rows, labels = batch
        logits = self(rows)
        loss = F.cross_entropy(logits, labels)
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        self.train_acc(logits, labels)
        self.log("train_acc", self.train_acc, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        rows, labels = batch
        logits = self(rows)
        self.log("val_loss", F.cross_entropy(logits, labels), prog_bar=True, sync_dist=True)
        self.val_acc(logits, labels)
        self.log("val_acc", self.val_acc, prog_bar=True)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        rows, labels = batch
        logits = self(rows)
        self.log("test_loss", F.cross_entropy(logits, labels), sync_dist=True)
        self.test_acc(logits, labels)
        self.log("test_acc", self.test_acc)

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Class probabilities (B, num_classes); the labels of the batch are not looked at."""
        rows, _ = batch
        return self(rows).softmax(dim=-1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)
