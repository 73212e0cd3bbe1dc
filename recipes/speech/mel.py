"""Log-mel spectra with torch alone."""

from __future__ import annotations

import torch
from torch import Tensor

WINDOW = 0.025  # seconds
HOP = 0.010
FLOOR = -80.0  # dB: what is softer counts as silence


def mel_filters(mels: int, fft: int, rate: int) -> Tensor:
    """Triangles at equal steps of the mel scale from 0 to `rate` / 2, shape (mels, fft // 2 + 1).

    Each triangle reaches 1 at its middle and 0 at the middles of its neighbours. The scale is 2595 log10(1 + f / 700),
    after O'Shaughnessy 1987, Speech Communication, page 150.

    Raises:
        ValueError: a triangle lies between two bins of the transform, or `mels` is below 1.

    Example::

        >>> filters = mel_filters(40, fft=1024, rate=16_000)
        >>> filters.shape, bool(filters.sum(1).min() > 0)
        (torch.Size([40, 513]), True)
    """
    if mels < 1:
        raise ValueError(f"mels={mels} leaves no band: choose 1 or more.")
    highest = 2595 * torch.log10(torch.tensor(1 + rate / 2 / 700, dtype=torch.float64))
    edges = 700 * (10 ** (torch.linspace(0, float(highest), mels + 2, dtype=torch.float64) / 2595) - 1)
    bins = torch.linspace(0, rate / 2, fft // 2 + 1, dtype=torch.float64)
    widths = edges.diff().unsqueeze(1)
    rising = (bins - edges[:-2].unsqueeze(1)) / widths[:-1]
    falling = (edges[2:].unsqueeze(1) - bins) / widths[1:]
    filters = torch.minimum(rising, falling).clamp_min(0).float()
    empty = int((filters.sum(dim=1) == 0).sum())
    if empty:
        raise ValueError(f"mels={mels} at {rate} Hz leaves {empty} band(s) without a frequency: choose fewer mels.")
    return filters


def fft_size(rate: int) -> int:
    """Length of the transform: the power of two that holds two windows or more.

    Example::

        >>> fft_size(16_000)
        1024
    """
    return 1 << (round(2 * WINDOW * rate) - 1).bit_length()


def log_mel(samples: Tensor, rate: int, mels: int) -> Tensor:
    """Levels in dB of `mels` bands every 10 ms, shape (..., N) to (..., mels, 1 + N // hop).

    Windows of 25 ms (Hann) around every hop, zeros beyond the ends; power, mel bands, then 10 log10. A sine of amplitude
    1 has 0 dB in its bin, and a band adds up the power of its bins; everything below -80 dB is -80.

    Example::

        >>> time = torch.arange(16_000) / 16_000
        >>> level = log_mel((2 * torch.pi * 1000 * time).sin(), rate=16_000, mels=40)
        >>> level.shape, int(level[:, 50].argmax())
        (torch.Size([40, 101]), 13)
    """
    length, hop, fft = round(WINDOW * rate), round(HOP * rate), fft_size(rate)
    window = torch.hann_window(length)
    spectrum = torch.stft(
        samples, fft, hop, length, window, center=True, pad_mode="constant", normalized=False, return_complex=True
    )
    power = (spectrum.abs() * (2 / window.sum())) ** 2
    return 10 * (mel_filters(mels, fft, rate) @ power).clamp_min(10 ** (FLOOR / 10)).log10()
