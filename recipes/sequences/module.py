"""An ordinary classifier of sequences, as one would write it from the documentation of Lightning."""

from __future__ import annotations

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy


class ConvolutionalNetwork(nn.Module):
    """Letters as vectors, `layers` times convolution, batch norm, ReLU and halving, then the maximum over positions.

    Shapes: (B, T) int64, 0 for no letter, to (B, num_classes); T is at least 2 to the power of `layers`.
    """

    def __init__(self, letters: int, num_classes: int, width: int, layers: int, kernel: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(letters + 1, width, padding_idx=0)
        blocks: list[nn.Module] = []
        for _ in range(layers):
            convolution = nn.Conv1d(width, width, kernel, padding=kernel // 2, bias=False)
            blocks += [convolution, nn.BatchNorm1d(width), nn.ReLU(), nn.MaxPool1d(2)]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(width, num_classes)

    def forward(self, letters: Tensor) -> Tensor:
        return self.head(self.blocks(self.embed(letters).transpose(1, 2)).amax(dim=2))


class SequenceClassifier(L.LightningModule):
    """A convolutional network, cross entropy and AdamW; batches are (letters (B, T) int64, labels (B,) int64).

    Logs `train_loss`, `train_acc`, `val_loss`, `val_acc`, `test_loss` and `test_acc`.

    Raises:
        ValueError: `kernel` is even.

    Example::

        >>> import torch
        >>> SequenceClassifier(num_classes=3)(torch.zeros(2, 64, dtype=torch.int64)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        alphabet: str = "ACGT",
        num_classes: int = 2,
        width: int = 64,
        layers: int = 3,
        kernel: int = 9,
        lr: float = 1e-3,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"kernel={kernel} is even and has no middle: choose {kernel + 1}.")
        self.save_hyperparameters()
        self.lr = lr
        self.weight_decay = weight_decay
        self.net = ConvolutionalNetwork(len(alphabet), num_classes, width, layers, kernel)
        self.train_acc = MulticlassAccuracy(num_classes, average="micro")
        self.val_acc = MulticlassAccuracy(num_classes, average="micro")
        self.test_acc = MulticlassAccuracy(num_classes, average="micro")

    def forward(self, letters: Tensor) -> Tensor:
        """Logits (B, num_classes) of encoded letters (B, T)."""
        return self.net(letters)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        letters, labels = batch
        logits = self(letters)
        loss = F.cross_entropy(logits, labels)
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        self.train_acc(logits, labels)
        self.log("train_acc", self.train_acc, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        letters, labels = batch
        logits = self(letters)
        self.log("val_loss", F.cross_entropy(logits, labels), prog_bar=True, sync_dist=True)
        self.val_acc(logits, labels)
        self.log("val_acc", self.val_acc, prog_bar=True)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        letters, labels = batch
        logits = self(letters)
        self.log("test_loss", F.cross_entropy(logits, labels), sync_dist=True)
        self.test_acc(logits, labels)
        self.log("test_acc", self.test_acc)

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Class probabilities (B, num_classes); the labels of the batch are not looked at."""
        letters, _ = batch
        return self(letters).softmax(dim=-1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)
