"""Spoken words as log-mel spectra of one length, as an ordinary LightningDataModule."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from . import espeak, wavs
from .folder import Clip, find, split
from .mel import log_mel

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class SpeechData(L.LightningDataModule):
    """Clips of single words with the word's number: a folder of wavs, or digits spoken by espeak-ng.

    A clip is cut or filled with zeros at both ends to `seconds`; its spectrum, in dB, is computed once and held in
    memory. Nobody speaks in two parts: `val_share` and `test_share` are of the speakers, except where `root` has the
    lists of Speech Commands, which then decide. For prediction the test clips are served.

    Args:
        root: a folder with WORD/*.wav (16-bit PCM), in the layout of Speech Commands. Without one, espeak-ng speaks.
        words: the words to tell apart. Without them, all folders of `root`, or the ten digits.
        voices: voices of espeak-ng, where it speaks.
        takes: times that each voice says each word, at another pitch, speed and volume and in another noise.
        seconds: length of a clip.
        rate: sampling rate in Hz; what has another is converted.
        mels: bands of the spectrum.
        batch_size: clips per training batch; an incomplete last batch is dropped.
        eval_batch_size: clips per batch in validation, test and prediction.
        num_workers: worker processes per loader.
        val_share: part of the speakers for validation.
        test_share: part of the speakers for the test.
        seed: of the split and of how espeak-ng speaks, and of nothing else.

    Raises:
        ValueError: a folder or file that cannot be read; an unknown word; shares that leave too little of a part.
        FileNotFoundError: no `root`, and no espeak-ng.

    Example::

        >>> data = SpeechData(root="my_words", batch_size=16)
        >>> data.prepare_data()
        >>> data.setup("fit")
        >>> levels, labels = next(iter(data.train_dataloader()))
        >>> levels.shape, levels.dtype, labels.shape
        (torch.Size([16, 40, 101]), torch.float32, torch.Size([16]))
    """

    def __init__(
        self,
        root: str | None = None,
        words: list[str] | None = None,
        voices: int = 60,
        takes: int = 4,
        seconds: float = 1.0,
        rate: int = 16_000,
        mels: int = 40,
        batch_size: int = 64,
        eval_batch_size: int = 256,
        num_workers: int = 0,
        val_share: float = 0.15,
        test_share: float = 0.15,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if seconds <= 0 or takes < 1:
            raise ValueError(f"seconds={seconds} and takes={takes} must be above 0.")
        self.save_hyperparameters()
        self.root = root
        self.words = words
        self.voices = voices
        self.takes = takes
        self.seconds = seconds
        self.rate = rate
        self.mels = mels
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.val_share = val_share
        self.test_share = test_share
        self.seed = seed
        self.classes: list[str] = []
        self.parts: dict[str, TensorDataset] = {}

    def prepare_data(self) -> None:
        if self.root is None:
            self._spoken()

    def setup(self, stage: str) -> None:
        if self.parts:
            return
        clips = find(self._spoken()) if self.root is None else find(Path(self.root).expanduser(), self.words)
        self.classes = sorted({clip.word for clip in clips})
        chosen = self._split(clips)
        self.parts = {part: self._spectra([clips[index] for index in places]) for part, places in chosen.items()}
        sizes = ", ".join(f"{len(places)} for {part}" for part, places in chosen.items())
        rank_zero_info(
            f"Speech of {self.root or espeak.PROGRAM}: {len(self.classes)} words, {', '.join(self.classes)}; clips: {sizes}"
        )

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

    def _spoken(self) -> Path:
        """The folder of the clips that espeak-ng makes."""
        texts, voices = sorted(set(self.words or DIGITS)), espeak.voices(self.voices)
        return espeak.folder(espeak.sayings(texts, voices, self.takes, self.seconds, self.seed), self.rate)

    def _split(self, clips: Sequence[Clip]) -> dict[str, list[int]]:
        parts: dict[str, list[int]] = {"train": [], "val": [], "test": []}
        if all(clip.part for clip in clips):
            for index, clip in enumerate(clips):
                parts[clip.part].append(index)
        else:
            parts = split([clip.speaker for clip in clips], self.val_share, self.test_share, self.seed)
        sizes = {part: len(places) for part, places in parts.items()}
        if sizes["train"] < self.batch_size or not sizes["val"] or not sizes["test"]:
            raise ValueError(
                f"{len(clips)} clips give {sizes['train']} for training, {sizes['val']} for validation and "
                f"{sizes['test']} for the test; a batch of {self.batch_size} and one clip each are needed: change the "
                "shares or lower batch_size."
            )
        return parts

    def _spectra(self, clips: Sequence[Clip]) -> TensorDataset:
        length = round(self.seconds * self.rate)
        levels = []
        for start in range(0, len(clips), 256):
            samples = [wavs.of_length(wavs.read(clip.path, self.rate), length) for clip in clips[start : start + 256]]
            levels.append(log_mel(torch.stack(samples), self.rate, self.mels))
        return TensorDataset(torch.cat(levels), torch.tensor([self.classes.index(clip.word) for clip in clips]))

    def _part(self, name: str) -> TensorDataset:
        if not self.parts:
            raise ValueError("the clips are not loaded: call prepare_data() and setup('fit') first.")
        return self.parts[name]
