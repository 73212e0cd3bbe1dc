"""An ordinary language model, as one would write it from the documentation of Lightning."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.text import Perplexity

from .networks import Decoder, generate

BYTES = 256


class LanguageModel(L.LightningModule):
    """A small transformer that predicts the next byte; batches are (bytes (B, T) int64, the bytes that follow (B, T)).

    Logs `loss`, `perplexity`, `bits_per_byte` and `acc` with the prefix `train_` or `val_`. AdamW with a linear
    warm-up of the learning rate over `warmup_steps`, constant afterwards. `predict_step` goes on from each row of the
    batch by `new_bytes` bytes.

    Raises:
        ValueError: `heads` does not divide `width`.

    Example::

        >>> import torch
        >>> LanguageModel(width=64, layers=1, heads=2)(torch.zeros(2, 16, dtype=torch.int64)).shape
        torch.Size([2, 16, 256])
    """

    def __init__(
        self,
        width: int = 128,
        layers: int = 4,
        heads: int = 4,
        block_size: int = 128,
        dropout: float = 0.1,
        tied: bool = True,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        warmup_steps: int = 100,
        new_bytes: int = 64,
        temperature: float = 0.8,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lr = lr
        self.weight_decay = weight_decay
        self.warmup_steps = warmup_steps
        self.new_bytes = new_bytes
        self.temperature = temperature
        self.net = Decoder(BYTES, width, layers, heads, block_size, dropout, tied)

        self.train_acc = MulticlassAccuracy(BYTES, average="micro")
        self.train_perplexity = Perplexity()
        self.val_acc = MulticlassAccuracy(BYTES, average="micro")
        self.val_perplexity = Perplexity()

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (B, T, 256) of the byte that follows each of `tokens` (B, T)."""
        return self.net(tokens)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        tokens, following = batch
        logits = self(tokens)
        loss = F.cross_entropy(logits.flatten(0, 1), following.flatten())
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        self.log("train_bits_per_byte", loss / math.log(2), on_step=True, on_epoch=True)

        self.train_acc(logits.flatten(0, 1), following.flatten())
        self.log("train_acc", self.train_acc, on_step=True, on_epoch=True, prog_bar=True)
        self.train_perplexity(logits.float(), following)
        self.log("train_perplexity", self.train_perplexity, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        tokens, following = batch
        logits = self(tokens)
        loss = F.cross_entropy(logits.flatten(0, 1), following.flatten())
        self.log("val_loss", loss, prog_bar=True, sync_dist=True)
        self.log("val_bits_per_byte", loss / math.log(2), prog_bar=True, sync_dist=True)
        self.val_acc(logits.flatten(0, 1), following.flatten())
        self.log("val_acc", self.val_acc)
        self.val_perplexity(logits.float(), following)
        self.log("val_perplexity", self.val_perplexity)

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The bytes of the batch and `new_bytes` that the model puts after them: (B, T + new_bytes)."""
        tokens, _ = batch
        return generate(self.net, tokens, self.new_bytes, self.temperature)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        if not self.warmup_steps:
            return optimizer
        warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / self.warmup_steps, total_iters=self.warmup_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": warmup, "interval": "step"}}
