"""Texts and the log-mel spectra of how they are said, as an ordinary LightningDataModule."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from .. import espeak, wavs
from ..folder import Clip, find, split
from ..mel import FLOOR, log_mel
from .numbers import in_words

Item = tuple[Tensor, Tensor]


class SpokenTextData(L.LightningDataModule):
    """Texts with the spectrum of a speaker: numbers below 1000 in words, spoken by espeak-ng, or a folder of wavs.

    A batch is (letters (B, N) int64, levels (B, mels, T) in dB, frames (B,) int64), short ones filled with 0 and with
    silence. A letter is its place in `alphabet`, counted from 1; what is not in it is left out. For prediction the test
    texts are served.

    Args:
        root: a folder with TEXT/*.wav (16-bit PCM), `_` for a space. Without one, espeak-ng speaks.
        texts: numbers to say, drawn from the thousand, where espeak-ng speaks.
        voice: of espeak-ng.
        rate: sampling rate in Hz; what has another is converted.
        mels: bands of the spectrum.
        alphabet: the letters.
        split_by: `text`, so that validation and test have texts that training has not, or `speaker`.
        batch_size: clips per training batch; an incomplete last batch is dropped.
        eval_batch_size: clips per batch in validation, test and prediction.
        num_workers: worker processes per loader.
        val_share: part of the texts, or speakers, for validation.
        test_share: part of the texts, or speakers, for the test.
        seed: of the split and of the numbers, and of nothing else.

    Raises:
        ValueError: a folder or file that cannot be read; a text without a letter of `alphabet`; shares that leave too
            little of a part.
        FileNotFoundError: no `root`, and no espeak-ng.

    Example::

        >>> data = SpokenTextData(root="my_words", split_by="speaker", batch_size=16)
        >>> data.prepare_data()
        >>> data.setup("fit")
        >>> letters, levels, frames = next(iter(data.train_dataloader()))
        >>> levels.shape[:2], int(frames.max()) == levels.shape[2]
        (torch.Size([16, 40]), True)
    """

    def __init__(
        self,
        root: str | None = None,
        texts: int = 500,
        voice: str = "en-us",
        rate: int = 16_000,
        mels: int = 40,
        alphabet: str = " abcdefghijklmnopqrstuvwxyz",
        split_by: Literal["text", "speaker"] = "text",
        batch_size: int = 16,
        eval_batch_size: int = 64,
        num_workers: int = 0,
        val_share: float = 0.1,
        test_share: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 3 <= texts <= 1000:
            raise ValueError(f"texts={texts} must be 3 to 1000: they are drawn from the numbers below 1000.")
        if len(set(alphabet)) < max(len(alphabet), 1):
            raise ValueError(f"alphabet={alphabet!r} must be letters, each once.")
        self.save_hyperparameters()
        self.root = root
        self.texts = texts
        self.voice = voice
        self.rate = rate
        self.mels = mels
        self.alphabet = alphabet
        self.split_by = split_by
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.val_share = val_share
        self.test_share = test_share
        self.seed = seed
        self.parts: dict[str, list[Item]] = {}

    def prepare_data(self) -> None:
        if self.root is None:
            self._spoken()

    def setup(self, stage: str) -> None:
        if self.parts:
            return
        clips = find(self._spoken() if self.root is None else Path(self.root).expanduser())
        groups = [clip.word if self.split_by == "text" else clip.speaker for clip in clips]
        chosen = split(groups, self.val_share, self.test_share, self.seed)
        if len(chosen["train"]) < self.batch_size:
            raise ValueError(
                f"{len(clips)} clips give {len(chosen['train'])} for training, which is no batch of {self.batch_size}: "
                "change the shares or lower batch_size."
            )
        self.parts = {part: [self._item(clips[index]) for index in places] for part, places in chosen.items()}
        levels = torch.cat([levels for _, levels in self.parts["train"]], dim=1)
        sizes = ", ".join(f"{len(places)} for {part}" for part, places in chosen.items())
        rank_zero_info(
            f"Texts of {self.root or espeak.PROGRAM}: clips: {sizes}; levels for training: mean {levels.mean():.3g} dB, "
            f"deviation {levels.std():.3g} dB"
        )

    def train_dataloader(self) -> DataLoader[Item]:
        return self._loader("train", batch_size=self.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader[Item]:
        return self._loader("val", batch_size=self.eval_batch_size)

    def test_dataloader(self) -> DataLoader[Item]:
        return self._loader("test", batch_size=self.eval_batch_size)

    def predict_dataloader(self) -> DataLoader[Item]:
        return self.test_dataloader()

    def encode(self, text: str) -> Tensor:
        """The places in the alphabet, from 1, of the letters of a text (N,) int64.

        Raises:
            ValueError: none of its letters is in the alphabet.
        """
        places = [self.alphabet.index(letter) + 1 for letter in text.lower() if letter in self.alphabet]
        if not places:
            raise ValueError(f"no letter of {text!r} is in alphabet={self.alphabet!r}: pass the one of these texts.")
        return torch.tensor(places)

    def _spoken(self) -> Path:
        """The folder of the clips that espeak-ng makes."""
        numbers = random.Random(self.seed).sample(range(1000), self.texts)
        return espeak.folder([espeak.Saying(in_words(number), self.voice) for number in sorted(numbers)], self.rate)

    def _item(self, clip: Clip) -> Item:
        levels = log_mel(wavs.read(clip.path, self.rate), self.rate, self.mels)
        return self.encode(clip.word.replace("_", " ")), levels

    def _loader(self, part: str, batch_size: int, shuffle: bool = False, drop_last: bool = False) -> DataLoader[Item]:
        if not self.parts:
            raise ValueError("the clips are not loaded: call prepare_data() and setup('fit') first.")
        return DataLoader(
            self.parts[part],  # pyright: ignore[reportArgumentType]
            batch_size=batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
            num_workers=self.num_workers,
            collate_fn=join,
        )


def join(items: Sequence[Item]) -> tuple[Tensor, Tensor, Tensor]:
    """Letters (N,) and levels (mels, T) of several clips, filled up to the longest, and their numbers of frames.

    Example::

        >>> items = [(torch.tensor([3]), torch.zeros(2, 4)), (torch.tensor([1, 2]), torch.zeros(2, 3))]
        >>> letters, levels, frames = join(items)
        >>> letters.tolist(), levels.shape, levels[1, 0].tolist(), frames.tolist()
        ([[3, 0], [1, 2]], torch.Size([2, 2, 4]), [0.0, 0.0, 0.0, -80.0], [4, 3])
    """
    letters = pad_sequence([letters for letters, _ in items], batch_first=True)
    levels = pad_sequence([levels.T for _, levels in items], batch_first=True, padding_value=FLOOR).transpose(1, 2)
    return letters, levels, torch.tensor([levels.shape[1] for _, levels in items])
