"""Residual networks for small images, after He et al. 2016, https://arxiv.org/abs/1512.03385, and networks by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from .transformer import VisionTransformer


class PadShortcut(nn.Module):
    """Option A: every `stride`-th pixel, new channels filled with zeros, no parameters.

    Shapes: (B, in_channels, H, W) to (B, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.new_channels = out_channels - in_channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, 0, self.new_channels))


class ProjectionShortcut(nn.Sequential):
    """Option B: a strided 1x1 convolution with batch normalisation."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False),
            nn.BatchNorm2d(out_channels),
        )


Shortcut = Callable[[int, int, int], nn.Module]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is the identity where the shape stays the same."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        same_shape = stride == 1 and in_channels == out_channels
        self.shortcut = nn.Identity() if same_shape else shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class ResNet(nn.Module):
    """A 3x3 stem, a stage of basic blocks per width (all but the first halve the image), mean pooling, a linear head.

    Shapes: (B, in_channels, H, W) float to (B, num_classes) logits.
    """

    def __init__(
        self, widths: Sequence[int], blocks: int, shortcut: Shortcut, in_channels: int, num_classes: int
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, widths[0], kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(),
        )
        stages = []
        channels = widths[0]
        for stage, width in enumerate(widths):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                stages.append(BasicBlock(channels, width, stride, shortcut))
                channels = width
        self.blocks = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x))
        return self.head(self.pool(x).flatten(1))


def resnet20(in_channels: int, num_classes: int) -> ResNet:
    """The CIFAR network of section 4.2: three stages of three blocks, 16, 32 and 64 channels, option A.

    With 3 channels and 10 classes 269,722 parameters (0.27M in the paper). New channels follow the old ones.
    """
    return ResNet((16, 32, 64), 3, PadShortcut, in_channels, num_classes)


def resnet18(in_channels: int, num_classes: int) -> ResNet:
    """The ImageNet network of section 4.1: four stages of two blocks, 64 to 512 channels, option B.

    Deviation: a 3x3 stem of stride 1 without max pooling, because the images are small.
    """
    return ResNet((64, 128, 256, 512), 2, ProjectionShortcut, in_channels, num_classes)


def vit(in_channels: int, num_classes: int) -> VisionTransformer:
    """A small vision transformer: patches of 4 x 4, width 64, four blocks, four heads."""
    return VisionTransformer(in_channels, num_classes)


NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {"resnet18": resnet18, "resnet20": resnet20, "vit": vit}


def build(name: str, in_channels: int, num_classes: int) -> nn.Module:
    """The network called `name`.

    Raises:
        ValueError: no network has that name.

    Example::

        >>> sum(p.numel() for p in build("resnet20", 3, 10).parameters())
        269722
    """
    if name not in NETWORKS:
        raise ValueError(f"network={name!r} is not known: choose one of {', '.join(sorted(NETWORKS))}.")
    return NETWORKS[name](in_channels, num_classes)
