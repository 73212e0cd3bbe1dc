"""Short wavs of tones in the layout of Speech Commands, in place of speech."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from recipes.speech import wavs

RATE = 8000


def tone(hertz: float, seconds: float, rate: int) -> torch.Tensor:
    """A sine of amplitude 1/2, (seconds * rate,)."""
    return (2 * torch.pi * hertz * torch.arange(round(seconds * rate)) / rate).sin() / 2


def write_tones(root: Path, words: Sequence[str] = ("high", "low"), speakers: int = 10, seconds: float = 0.3) -> Path:
    """`root/WORD/SPEAKER_nohash_0.wav`: a tone for each word, a little higher with every speaker."""
    for number, word in enumerate(words):
        (root / word).mkdir(parents=True)
        for speaker in range(speakers):
            sound = tone(2000 / (number + 1) + 10 * speaker, seconds, RATE)
            wavs.write(root / word / f"s{speaker}_nohash_0.wav", sound, RATE)
    return root
