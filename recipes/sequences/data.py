"""Sequences of letters, cut or padded to one length, as an ordinary LightningDataModule."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from . import fasta


class SequenceData(L.LightningDataModule):
    """DNA, RNA or protein sequences with their class: a folder with a FASTA file per class, or a made-up task.

    A letter becomes its place in `alphabet`, counted from 1; another letter, and what is missing to `length`, becomes 0.
    What is longer loses its end. For prediction the test sequences are served.

    Args:
        path: the folder; the names of the files are the classes. Without one, made-up DNA: half of it with the motif of
            a TATA box, the other half with its letters in disorder.
        alphabet: the letters, such as `ACGT` or `ACDEFGHIKLMNPQRSTVWY`.
        length: letters per sequence.
        made_up: sequences of the made-up task.
        batch_size: sequences per training batch; an incomplete last batch is dropped.
        eval_batch_size: sequences per batch in validation, test and prediction.
        num_workers: worker processes per loader.
        val_share: part of the sequences for validation.
        test_share: part of the sequences for the test.
        seed: of the split and of the made-up task, and of nothing else.

    Raises:
        ValueError: a folder or file that cannot be read; a letter twice in `alphabet`; no letter of a file is in it;
            shares that leave too little of a part.

    Example::

        >>> data = SequenceData(length=32, made_up=200, batch_size=16)
        >>> data.setup("fit")
        >>> letters, labels = next(iter(data.train_dataloader()))
        >>> letters.shape, letters.dtype, labels.shape, data.classes
        (torch.Size([16, 32]), torch.int64, torch.Size([16]), ['motif', 'shuffled'])
    """

    def __init__(
        self,
        path: str | None = None,
        alphabet: str = "ACGT",
        length: int = 128,
        made_up: int = 4000,
        batch_size: int = 64,
        eval_batch_size: int = 256,
        num_workers: int = 0,
        val_share: float = 0.1,
        test_share: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if len(set(alphabet)) < max(len(alphabet), 2):
            raise ValueError(f"alphabet={alphabet!r} must be two letters or more, each once.")
        if not (0 < val_share < 1 and 0 < test_share < 1 and val_share + test_share < 1):
            raise ValueError(
                f"val_share={val_share} and test_share={test_share}: each is a part of the sequences between 0 and 1, and "
                "together they must leave some to train on."
            )
        self.save_hyperparameters()
        self.path = path
        self.alphabet = alphabet
        self.length = length
        self.made_up = made_up
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.val_share = val_share
        self.test_share = test_share
        self.seed = seed
        self.classes: list[str] = []
        self.parts: dict[str, TensorDataset] = {}

    def setup(self, stage: str) -> None:
        if self.parts:
            return
        if self.path is None:
            name, found = "made-up DNA", fasta.made_up(self.made_up, self.length, self.seed)
        else:
            name, found = self.path, fasta.folder(Path(self.path).expanduser())
        self.classes = list(found)
        sequences = [sequence for one in found.values() for sequence in one]
        letters = torch.stack([self._encode(sequence) for sequence in sequences])
        if not letters.any():
            raise ValueError(f"no letter of {name} is in alphabet={self.alphabet!r}: pass the one of these sequences.")
        labels = torch.tensor([label for label, one in enumerate(found.values()) for _ in one])
        order = self._split(len(labels))
        self.parts = {part: TensorDataset(letters[chosen], labels[chosen]) for part, chosen in order.items()}
        sizes = ", ".join(f"{len(chosen)} for {part}" for part, chosen in order.items())
        rank_zero_info(f"Sequences of {name}: classes {', '.join(self.classes)}; {sizes}")

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(
            self._part("train"), batch_size=self.batch_size, shuffle=True, drop_last=True, num_workers=self.num_workers
        )

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self._part("val"), batch_size=self.eval_batch_size, num_workers=self.num_workers)

    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self._part("test"), batch_size=self.eval_batch_size, num_workers=self.num_workers)

    def predict_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return self.test_dataloader()

    def _encode(self, sequence: str) -> Tensor:
        """The places in the alphabet, from 1, of `length` letters (length,) int64."""
        row = [self.alphabet.find(letter) + 1 for letter in sequence[: self.length]]
        return torch.tensor(row + [0] * (self.length - len(row)))

    def _split(self, rows: int) -> dict[str, Tensor]:
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(self.seed))
        val, test = round(rows * self.val_share), round(rows * self.test_share)
        train = rows - val - test
        if train < self.batch_size or not val or not test:
            raise ValueError(
                f"{rows} sequences (val_share={self.val_share}, test_share={self.test_share}) give {train} for training, "
                f"{val} for validation and {test} for the test; a batch of {self.batch_size} and one sequence each are "
                "needed: change the shares or lower batch_size."
            )
        return dict(zip(("train", "val", "test"), order.split([train, val, test]), strict=True))

    def _part(self, name: str) -> TensorDataset:
        if not self.parts:
            raise ValueError("the sequences are not loaded: call setup('fit') first.")
        return self.parts[name]
