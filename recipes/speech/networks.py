"""A residual network of one-dimensional convolutions over time, with the mel bands as channels."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn


class TemporalBlock(nn.Module):
    """Two convolutions over time, the first of which halves it, and a 1x1 convolution as the shortcut."""

    def __init__(self, channels: int, new_channels: int, kernel: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(channels, new_channels, kernel, stride=2, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm1d(new_channels)
        self.conv2 = nn.Conv1d(new_channels, new_channels, kernel, padding=kernel // 2, bias=False)
        self.bn2 = nn.BatchNorm1d(new_channels)
        self.shortcut = nn.Conv1d(channels, new_channels, kernel_size=1, stride=2, bias=False)
        self.bn3 = nn.BatchNorm1d(new_channels)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + F.relu(self.bn3(self.shortcut(x))))


class TemporalResNet(nn.Module):
    """TC-ResNet8 of Choi et al. 2019, https://arxiv.org/abs/1904.03814: a stem, three blocks, the mean over time, a head.

    `width` is the number of channels of the stem; the blocks have 1.5, 2 and 3 times as many. Deviation: a batch norm
    in front, so that spectra come in dB as they are.

    Shapes: (B, mels, T) float to (B, num_classes) logits.
    """

    def __init__(self, mels: int, num_classes: int, width: int, kernel: int, dropout: float) -> None:
        super().__init__()
        widths = [width, width * 3 // 2, width * 2, width * 3]
        self.norm = nn.BatchNorm1d(mels)
        self.stem = nn.Conv1d(mels, width, kernel_size=3, padding=1, bias=False)
        self.blocks = nn.Sequential(*(TemporalBlock(before, after, kernel) for before, after in pairwise(widths)))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, levels: Tensor) -> Tensor:
        return self.head(self.dropout(self.blocks(self.stem(self.norm(levels))).mean(dim=2)))
