"""Pairs of sentences, split into training, validation and test, as an ordinary LightningDataModule."""

from __future__ import annotations

import re
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader

from . import sentences
from .tokens import encode, join

Batch = tuple[Tensor, Tensor]


class TranslationData(L.LightningDataModule):
    """Sentences and their translations as bytes; a batch is (sources (B, S), targets (B, T)), int64, padded.

    No source is in two parts: those that differ in case, white space and punctuation only count as one. A pair comes
    once; a source with two translations gives two pairs. For prediction the sentences of the test are served.

    Args:
        package: an installed package with gettext catalogues, by the name that `pip` or that `import` knows.
        source: the language to translate from, as a folder of the catalogues has it; without it the messages as the
            program has them, which are English as a rule.
        target: the language to translate into.
        path: instead of `package`, a file with a source, a tab and its translation in every line, for which `source`
            and `target` do not count, or a folder of catalogues such as `/usr/share/locale`.
        max_bytes: pairs with a longer side are left out.
        batch_size: pairs per training batch; an incomplete last batch is dropped.
        eval_batch_size: pairs per batch in validation, test and prediction.
        num_workers: worker processes per loader.
        val_share: part of the sources for validation.
        test_share: part of the sources for the test.
        seed: of the split, and of nothing else: every run with the same one validates on the same sentences.

    Raises:
        ValueError: `path` is neither file nor folder; a line without one tab; no catalogues, or none of that language;
            shares that leave too little of a part.
        ModuleNotFoundError: the package is not installed.

    Example::

        >>> data = TranslationData(batch_size=8)
        >>> data.setup("fit")
        >>> sources, targets = next(iter(data.train_dataloader()))
        >>> len(sources), len(targets), sources.dtype
        (8, 8, torch.int64)
    """

    def __init__(
        self,
        package: str = sentences.DEFAULT,
        source: str | None = None,
        target: str = "de",
        path: str | None = None,
        max_bytes: int = 96,
        batch_size: int = 32,
        eval_batch_size: int = 64,
        num_workers: int = 0,
        val_share: float = 0.1,
        test_share: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not (0 < val_share < 1 and 0 < test_share < 1 and val_share + test_share < 1):
            raise ValueError(
                f"val_share={val_share} and test_share={test_share}: each is a part of the sources between 0 and 1, "
                "and together they must leave some to train on."
            )
        self.save_hyperparameters()
        self.package = package
        self.source = source
        self.target = target
        self.path = path
        self.max_bytes = max_bytes
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.val_share = val_share
        self.test_share = test_share
        self.seed = seed
        self.pairs: dict[str, list[tuple[str, str]]] = {}

    def setup(self, stage: str) -> None:
        if self.pairs:
            return
        if self.path is None:
            name, found = self.package, sentences.of_package(self.package, self.source, self.target)
        else:
            name, found = self.path, sentences.of_path(Path(self.path).expanduser(), self.source, self.target)
        short = [pair for pair in found if all(len(side.encode()) <= self.max_bytes for side in pair)]
        self.pairs = self._split(short)
        sizes = ", ".join(f"{len(pairs)} for {part}" for part, pairs in self.pairs.items())
        longer = f"{len(found) - len(short)} of more than {self.max_bytes} bytes are left out"
        rank_zero_info(f"Sentences of {name}: {sizes}; {longer}")

    def train_dataloader(self) -> DataLoader[Batch]:
        by_length = sorted(self._encoded("train"), key=lambda pair: sum(map(len, pair)))
        starts = range(0, len(by_length) - self.batch_size + 1, self.batch_size)
        batches = [join(by_length[start : start + self.batch_size]) for start in starts]
        return DataLoader(batches, batch_size=None, shuffle=True, num_workers=self.num_workers)  # pyright: ignore[reportArgumentType]

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[Batch]:
        return self.test_dataloader()

    def _loader(self, part: str) -> DataLoader[Batch]:
        return DataLoader(
            self._encoded(part),  # pyright: ignore[reportArgumentType]
            batch_size=self.eval_batch_size,
            num_workers=self.num_workers,
            collate_fn=join,
        )

    def _encoded(self, part: str) -> list[Batch]:
        if not self.pairs:
            raise ValueError("the sentences are not loaded: call setup('fit') first.")
        return [(encode(source), encode(target)) for source, target in self.pairs[part]]

    def _split(self, pairs: list[tuple[str, str]]) -> dict[str, list[tuple[str, str]]]:
        groups: dict[str, list[tuple[str, str]]] = {}
        for source, target in sorted(pairs):
            words = " ".join(re.findall(r"\w+", source.casefold()))
            groups.setdefault(words or source, []).append((source, target))
        alike = list(groups.values())
        order = torch.randperm(len(alike), generator=torch.Generator().manual_seed(self.seed))
        val, test = round(len(alike) * self.val_share), round(len(alike) * self.test_share)
        chosen = zip(("train", "val", "test"), order.split([len(alike) - val - test, val, test]), strict=True)
        parts = {part: [pair for index in indices.tolist() for pair in alike[index]] for part, indices in chosen}
        if len(parts["train"]) < self.batch_size or not val or not test:
            raise ValueError(
                f"{len(pairs)} pairs (max_bytes={self.max_bytes}, val_share={self.val_share}, "
                f"test_share={self.test_share}) give {len(parts['train'])} for training, {len(parts['val'])} for "
                f"validation and {len(parts['test'])} for the test; a batch of {self.batch_size} and one pair each are "
                "needed: change the shares, raise max_bytes or lower batch_size."
            )
        return parts
