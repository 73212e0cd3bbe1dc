"""Sound files of 16-bit PCM, read and written with the standard library, and other sampling rates."""

from __future__ import annotations

import math
import wave
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor


def read(path: Path, rate: int) -> Tensor:
    """Samples (N,) float32 in [-1, 1) at `rate` Hz; several channels become their mean.

    Raises:
        ValueError: the file is no wav of 16-bit PCM, or holds nothing.
    """
    try:
        with wave.open(str(path)) as file:
            channels, width, own_rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
            content = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise ValueError(f"{path} is no wav of PCM ({error}): {_FIX}.") from error
    if width != 2:
        raise ValueError(f"{path} has {8 * width}-bit samples, and 16-bit PCM is read: {_FIX}.")
    whole = len(content) // (2 * channels) * 2 * channels
    if not whole:
        raise ValueError(f"{path} holds no sample: delete it.")
    samples = torch.frombuffer(bytearray(content[:whole]), dtype=torch.int16).view(-1, channels)
    return resample(samples.float().mean(dim=1) / 32768, own_rate, rate)


def write(path: Path, samples: Tensor, rate: int) -> None:
    """Write samples (N,) in [-1, 1] as one channel of 16-bit PCM; what is louder is cut off."""
    rounded = (samples * 32768).round().clamp(-32768, 32767).to(torch.int16)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(rounded.numpy().tobytes())


def of_length(samples: Tensor, length: int) -> Tensor:
    """The middle of a long clip, or a short one with zeros on both sides, the odd one at the end: (N,) to (length,).

    Example::

        >>> of_length(torch.ones(2), 5).tolist(), of_length(torch.arange(5), 2).tolist()
        ([0.0, 1.0, 1.0, 0.0, 0.0], [2, 3])
    """
    before = (length - len(samples)) // 2
    return F.pad(samples, (before, length - len(samples) - before))


def resample(samples: Tensor, rate: int, new_rate: int) -> Tensor:
    """The same sound at another rate, (N,) to (ceil(N * new_rate / rate),): cut or filled up in the frequency domain.

    Exact for sounds that are band-limited and silent at both ends; frequencies above either half rate go.

    Example::

        >>> resample(torch.zeros(22_050), 22_050, 16_000).shape
        torch.Size([16000])
    """
    if rate == new_rate:
        return samples
    common = math.gcd(rate, new_rate)
    step, new_step = rate // common, new_rate // common
    blocks = -(-len(samples) // step)
    padded = F.pad(samples, (0, blocks * step - len(samples)))
    spectrum = torch.fft.rfft(padded)
    # The bin at either half rate is dropped: whether it was a sine or a cosine cannot be told.
    kept = spectrum[: (min(blocks * step, blocks * new_step) + 1) // 2]
    new = torch.fft.irfft(kept, n=blocks * new_step) * (new_step / step)
    return new[: -(-len(samples) * new_step // step)]


_FIX = "convert it, with `ffmpeg -i OLD -c:a pcm_s16le NEW.wav` for example"
