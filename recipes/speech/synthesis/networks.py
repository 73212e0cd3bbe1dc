"""Text to mel in one pass: letters with a learned length each, spread over the frames, and convolutions on both sides."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ResidualConv(nn.Module):
    """Layer norm, a convolution over time, GELU and dropout, added to the input; what the mask leaves out is not seen."""

    def __init__(self, width: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.conv = nn.Conv1d(width, width, kernel, padding=kernel // 2)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, T, width) and (B, T, 1) to (B, T, width)."""
        out = self.conv((self.norm(x) * mask).transpose(1, 2)).transpose(1, 2)
        return x + self.dropout(F.gelu(out))


def spread(lengths: Tensor, letters: Tensor, frames: int, softness: float) -> tuple[Tensor, Tensor]:
    """How much of each letter is in each frame, and where in the letter the frame is.

    Letters lie one after another, each as long as it says; a frame takes them by the softmax of the negative squared
    distance of its middle from theirs, over twice `softness` squared. The place is the mean distance, in frames over
    `softness`. After the aligner of Donahue et al. 2021, https://arxiv.org/abs/2006.03575, section 2.1.

    Shapes: lengths (B, N) and letters (B, N), 0 for no letter, to (B, frames, N) and (B, frames, 1).
    """
    middles = lengths.cumsum(dim=1) - lengths / 2
    times = torch.arange(frames, device=lengths.device) + 0.5
    distances = (times[None, :, None] - middles[:, None, :]) / softness
    scores = (-0.5 * distances.square()).masked_fill((letters == 0)[:, None, :], -torch.inf)
    weights = scores.softmax(dim=2)
    return weights, (weights * distances).sum(dim=2, keepdim=True)


class TextToMel(nn.Module):
    """Letters to spectra: convolutions over the letters, a length for each, `spread`, convolutions over the frames.

    Shapes: (B, N) int64, 0 for no letter, to lengths (B, N) in frames and standardised levels (B, mels, T).
    """

    def __init__(
        self, letters: int, mels: int, width: int, layers: int, kernel: int, dropout: float, softness: float
    ) -> None:
        super().__init__()
        self.softness = softness
        self.embed = nn.Embedding(letters + 1, width, padding_idx=0)
        self.encoder = nn.ModuleList(ResidualConv(width, kernel, dropout) for _ in range(layers))
        self.length = nn.Linear(width, 1)
        self.place = nn.Linear(1, width)
        self.decoder = nn.ModuleList(ResidualConv(width, kernel, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, mels)
        nn.init.constant_(self.length.bias, 7.0)  # frames a letter of an ordinary speaker

    def forward(self, letters: Tensor, frames: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Lengths and levels; with `frames` (B,) the lengths are stretched for the levels until they add up to it."""
        real = (letters != 0).unsqueeze(2)
        x = self.embed(letters)
        for block in self.encoder:
            x = block(x, real)
        lengths = F.softplus(self.length(x)).squeeze(2) * real.squeeze(2)
        totals = lengths.sum(dim=1)
        if frames is None:
            frames = totals.round().clamp_min(1).long()
        most = int(frames.max())
        weights, place = spread(lengths * (frames / totals).unsqueeze(1), letters, most, self.softness)
        inside = (torch.arange(most, device=frames.device) < frames.unsqueeze(1)).unsqueeze(2)
        x = weights @ x + self.place(place)
        for block in self.decoder:
            x = block(x, inside)
        return lengths, self.head(self.norm(x)).transpose(1, 2)
