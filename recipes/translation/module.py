"""An ordinary translation model, as one would write it from the documentation of Lightning."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.text import BLEUScore, CHRFScore

from .networks import EncoderDecoder, translate
from .tokens import PAD, VOCABULARY, decode


class Translator(L.LightningModule):
    """A small encoder-decoder transformer over bytes; batches are (sources (B, S) int64, targets (B, T) int64).

    Rows start with the token of the begin, end with that of the end, and are padded. Logs `loss` (nats per token) and
    `acc` (of the next token, given the true ones before) with the prefix `train_`, `val_` or `test_`; with the latter
    two also `bleu` and `chrf` of greedy translations of the first `scored` sentences, and `chrf_copy`: chrF of the
    sources themselves, which a translation must beat. All three are between 0 and 1. The loss of training is that
    with smoothed labels. AdamW with a linear warm-up of the learning rate over `warmup_steps`, constant afterwards.

    Raises:
        ValueError: `heads` does not divide `width`; `scored`, `longest` or `warmup_steps` is below 1.

    Example::

        >>> sources, targets = torch.tensor([[1, 117, 104, 103, 2]]), torch.tensor([[1, 117, 114, 119, 2]])  # red, rot
        >>> Translator(width=32, layers=1, heads=2)(sources, targets).shape
        torch.Size([1, 5, 259])
    """

    def __init__(
        self,
        width: int = 128,
        layers: int = 2,
        heads: int = 4,
        dropout: float = 0.1,
        label_smoothing: float = 0.1,
        lr: float = 2e-3,
        weight_decay: float = 1e-2,
        warmup_steps: int = 100,
        scored: int = 64,
        longest: int = 128,
    ) -> None:
        super().__init__()
        for name, value in (("scored", scored), ("longest", longest), ("warmup_steps", warmup_steps)):
            if value < 1:
                raise ValueError(f"{name}={value} is below 1: give the number of {_COUNTED[name]}.")
        self.save_hyperparameters()
        self.label_smoothing = label_smoothing
        self.lr = lr
        self.weight_decay = weight_decay
        self.warmup_steps = warmup_steps
        self.scored = scored
        self.longest = longest
        self.net = EncoderDecoder(VOCABULARY, width, layers, heads, dropout)

        self.train_acc = MulticlassAccuracy(VOCABULARY, average="micro", ignore_index=PAD)
        self.val_acc = MulticlassAccuracy(VOCABULARY, average="micro", ignore_index=PAD)
        self.val_bleu = BLEUScore()
        self.val_chrf = CHRFScore(n_word_order=0)
        self.val_chrf_copy = CHRFScore(n_word_order=0)
        self.test_acc = MulticlassAccuracy(VOCABULARY, average="micro", ignore_index=PAD)
        self.test_bleu = BLEUScore()
        self.test_chrf = CHRFScore(n_word_order=0)
        self.test_chrf_copy = CHRFScore(n_word_order=0)
        self._left = scored

    def forward(self, sources: Tensor, targets: Tensor) -> Tensor:
        """Logits (B, T, 259) of the token that follows each of `targets` (B, T), given those before it."""
        return self.net(sources, targets)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        sources, targets = batch
        logits, following = self(sources, targets[:, :-1]).flatten(0, 1), targets[:, 1:].flatten()
        loss = F.cross_entropy(logits, following, ignore_index=PAD, label_smoothing=self.label_smoothing)
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        self.train_acc(logits, following)
        self.log("train_acc", self.train_acc, on_step=False, on_epoch=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        self._start(self.val_bleu, self.val_chrf, self.val_chrf_copy)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluate("val", *batch, self.val_acc)
        self._score(*batch, self.val_bleu, self.val_chrf, self.val_chrf_copy)

    def on_validation_epoch_end(self) -> None:
        self.log("val_bleu", self.val_bleu)
        self.log("val_chrf", self.val_chrf, prog_bar=True)
        self.log("val_chrf_copy", self.val_chrf_copy)

    def on_test_epoch_start(self) -> None:
        self._start(self.test_bleu, self.test_chrf, self.test_chrf_copy)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluate("test", *batch, self.test_acc)
        self._score(*batch, self.test_bleu, self.test_chrf, self.test_chrf_copy)

    def on_test_epoch_end(self) -> None:
        self.log("test_bleu", self.test_bleu)
        self.log("test_chrf", self.test_chrf)
        self.log("test_chrf_copy", self.test_chrf_copy)

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> list[str]:
        """The translations of the sources; the targets of the batch are not looked at."""
        sources, _ = batch
        return [decode(row) for row in translate(self.net, sources, self.longest)]

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / self.warmup_steps, total_iters=self.warmup_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": warmup, "interval": "step"}}

    def _evaluate(self, prefix: str, sources: Tensor, targets: Tensor, acc: MulticlassAccuracy) -> None:
        logits, following = self(sources, targets[:, :-1]).flatten(0, 1), targets[:, 1:].flatten()
        loss = F.cross_entropy(logits, following, ignore_index=PAD)
        # Weighted by tokens, so that the mean over the epoch is that over all tokens, however they are batched. Lightning
        # divides the sum of the weights by the number of processes and drops the fraction: weighted by both there is none.
        tokens = int((following != PAD).sum())
        weight = tokens * self.trainer.world_size
        self.log(f"{prefix}_loss", loss, prog_bar=True, batch_size=weight, sync_dist=True)
        acc(logits, following)
        self.log(f"{prefix}_acc", acc)

    def _start(self, *scores: Metric) -> None:
        self._left = self.scored
        for score in scores:  # they add in place, which fails in `fit` on sums that `Trainer.validate` left behind
            score.reset()

    def _score(self, sources: Tensor, targets: Tensor, bleu: BLEUScore, chrf: CHRFScore, copy: CHRFScore) -> None:
        sources, targets = sources[: self._left], targets[: self._left]
        self._left -= len(sources)
        if not len(sources):
            return
        references = [[decode(row)] for row in targets]
        translations = [decode(row) for row in translate(self.net, sources, self.longest)]
        bleu.update(translations, references)
        chrf.update(translations, references)
        copy.update([decode(row) for row in sources], references)


_COUNTED = {
    "scored": "sentences to translate in validation",
    "longest": "tokens of the longest translation",
    "warmup_steps": "steps in which the learning rate rises",
}
