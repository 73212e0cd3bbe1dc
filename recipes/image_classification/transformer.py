"""A vision transformer for small images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head self-attention over all positions. Shapes: (B, T, width) to (B, T, width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class EncoderBlock(nn.Module):
    """Attention, then two linear layers with a GELU; each on the normalised input and added to it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.narrow(F.gelu(self.widen(self.norm2(x))))


class VisionTransformer(nn.Module):
    """Patches as tokens with fixed sine and cosine positions, encoder blocks, the mean over tokens, a linear head.

    After Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929, in the simplified form of Beyer et al. 2022,
    https://arxiv.org/abs/2205.01580 (fixed positions, mean pooling, no class token). Deviation: weights start as
    torch has them.

    Shapes: (B, in_channels, H, W) float to (B, num_classes) logits; H and W are multiples of `patch`.

    Raises:
        ValueError: `width` is no multiple of 4 and of `heads`; an image that the patches do not cover.
    """

    def __init__(
        self, in_channels: int, num_classes: int, *, patch: int = 4, width: int = 64, layers: int = 4, heads: int = 4
    ) -> None:
        super().__init__()
        if width % 4 or width % heads:
            raise ValueError(f"width={width} must be a multiple of 4 and of heads={heads}: choose another width.")
        self.patch = patch
        self.embed = nn.Conv2d(in_channels, width, kernel_size=patch, stride=patch)
        self.blocks = nn.Sequential(*(EncoderBlock(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if height % self.patch or width % self.patch:
            raise ValueError(
                f"an image of {height} x {width} is not covered by patches of {self.patch}: crop or pad it."
            )
        tokens = self.embed(x)
        positions = sine_positions(tokens.shape[2], tokens.shape[3], tokens.shape[1]).to(tokens)
        tokens = tokens.flatten(2).transpose(1, 2) + positions
        return self.head(self.norm(self.blocks(tokens)).mean(dim=1))


def sine_positions(height: int, width: int, channels: int) -> Tensor:
    """Sines and cosines of row and column at wavelengths from 2 pi to 2 pi * 10000, shape (height * width, channels).

    A quarter of the channels each: sine and cosine of the column, sine and cosine of the row.
    """
    quarter = channels // 4
    frequencies = 10_000.0 ** (-torch.arange(quarter) / max(quarter - 1, 1))
    rows = torch.arange(height).repeat_interleave(width).unsqueeze(1) * frequencies
    columns = torch.arange(width).repeat(height).unsqueeze(1) * frequencies
    return torch.cat([columns.sin(), columns.cos(), rows.sin(), rows.cos()], dim=1)
