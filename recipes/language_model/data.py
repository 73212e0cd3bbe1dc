"""Any text file, cut into blocks of bytes, as an ordinary LightningDataModule."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from . import text


class Blocks(Dataset[tuple[Tensor, Tensor]]):
    """A text (N,) uint8 in blocks; an item is `block_size` bytes and, shifted by one, the bytes that follow each.

    The last incomplete block is left out. Together the items predict every byte but the first exactly once.
    """

    def __init__(self, text: Tensor, block_size: int) -> None:
        self.text = text
        self.block_size = block_size

    def __len__(self) -> int:
        return max(len(self.text) - 1, 0) // self.block_size

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"block {index} of {len(self)}")
        start = index * self.block_size
        block = self.text[start : start + self.block_size + 1].long()
        return block[:-1], block[1:]


class TextData(L.LightningDataModule):
    """A text file as blocks of bytes: the beginning to train on, the end to validate on.

    Without `path` the text is what Python's installation brings: licences and the manual behind `help()`, about
    700 kB. Nothing is downloaded. `sources` names what was read. For prediction the first `prompts` validation blocks
    are served.

    Args:
        path: any file; it is read as bytes, whatever its encoding.
        block_size: bytes per item; not more than the model's.
        batch_size: blocks per training batch; an incomplete last batch is dropped.
        eval_batch_size: blocks per batch in validation and prediction.
        num_workers: worker processes per loader.
        val_share: the last part of the text that is set aside for validation.
        train_limit: use only so many of the training blocks, the first ones.
        prompts: blocks for prediction.

    Raises:
        ValueError: `path` is no file; `val_share` is not between 0 and 1; the text is too short for one training batch
            or one validation block.
        ModuleNotFoundError: no `path`, and a Python installation without manual and licences.

    Example::

        >>> data = TextData(block_size=32, batch_size=8)
        >>> data.setup("fit")
        >>> tokens, following = next(iter(data.train_dataloader()))
        >>> tokens.shape, tokens.dtype, bool((tokens[:, 1:] == following[:, :-1]).all())
        (torch.Size([8, 32]), torch.int64, True)
    """

    def __init__(
        self,
        path: str | None = None,
        block_size: int = 128,
        batch_size: int = 32,
        eval_batch_size: int = 64,
        num_workers: int = 0,
        val_share: float = 0.1,
        train_limit: int | None = None,
        prompts: int = 4,
    ) -> None:
        super().__init__()
        if not 0 < val_share < 1:
            raise ValueError(f"val_share={val_share} is not a part of the text: choose a number between 0 and 1.")
        self.save_hyperparameters()
        self.path = path
        self.block_size = block_size
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.val_share = val_share
        self.train_limit = train_limit
        self.prompts = prompts

        self.sources: list[str] = []
        self.train_set: Dataset[tuple[Tensor, Tensor]] | None = None
        self.val_set: Dataset[tuple[Tensor, Tensor]] | None = None

    def setup(self, stage: str) -> None:
        if self.val_set is not None:
            return
        if self.path is None:
            content, self.sources = text.default()
            rank_zero_info(f"Text: {len(content)} bytes from {len(self.sources)} texts of Python's installation")
        else:
            path = Path(self.path).expanduser()
            content, self.sources = text.read(path), [str(path)]
        self.train_set, self.val_set = self._split(torch.frombuffer(bytearray(content), dtype=torch.uint8))

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        dataset = _loaded(self.train_set)
        return DataLoader(
            dataset, batch_size=self.batch_size, shuffle=True, drop_last=True, num_workers=self.num_workers
        )

    def val_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        return DataLoader(_loaded(self.val_set), batch_size=self.eval_batch_size, num_workers=self.num_workers)

    def predict_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        blocks = _loaded(self.val_set)
        first = Subset(blocks, range(min(self.prompts, len(blocks))))  # pyright: ignore[reportArgumentType]
        return DataLoader(first, batch_size=self.eval_batch_size, num_workers=self.num_workers)

    def _split(self, content: Tensor) -> tuple[Dataset[tuple[Tensor, Tensor]], Dataset[tuple[Tensor, Tensor]]]:
        held_out = round(len(content) * self.val_share)
        rest = len(content) - held_out
        train, val = Blocks(content[:rest], self.block_size), Blocks(content[rest:], self.block_size)
        used = len(train) if self.train_limit is None else min(self.train_limit, len(train))
        if used < self.batch_size or not len(val):
            raise ValueError(
                f"a text of {len(content)} bytes (val_share={self.val_share}, train_limit={self.train_limit}) gives "
                f"{used} training and {len(val)} validation blocks of {self.block_size} bytes; a batch of "
                f"{self.batch_size} and one block are needed: use a longer text or smaller blocks and batches."
            )
        return Subset(train, range(used)), val


def _loaded(dataset: Dataset[tuple[Tensor, Tensor]] | None) -> Dataset[tuple[Tensor, Tensor]]:
    if dataset is None:
        raise ValueError("the text is not loaded: call setup('fit') first.")
    return dataset
