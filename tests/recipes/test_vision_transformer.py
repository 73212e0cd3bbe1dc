"""The vision transformer of the image recipe."""

from __future__ import annotations

import math

import pytest
import torch

from recipes.image_classification.module import ImageClassifier
from recipes.image_classification.transformer import Attention, VisionTransformer, sine_positions


def test_attention_equals_naive_loops() -> None:
    torch.manual_seed(0)
    attention, x = Attention(width=6, heads=2), torch.randn(1, 5, 6)
    q, k, v = attention.qkv(x)[0].split(6, dim=-1)
    rows = []
    for t in range(5):
        heads = []
        for part in (slice(0, 3), slice(3, 6)):
            scores = torch.stack([q[t, part] @ k[s, part] / math.sqrt(3) for s in range(5)])
            heads.append(torch.stack([w * v[s, part] for s, w in enumerate(scores.exp() / scores.exp().sum())]).sum(0))
        rows.append(torch.cat(heads))
    torch.testing.assert_close(attention(x)[0], attention.out(torch.stack(rows)))


def test_positions_equal_naive_loops() -> None:
    rows = []
    for y in range(2):
        for x in range(3):
            waves = [10_000.0 ** -(i / 2) for i in range(3)]
            rows.append(
                [f(at * w) for at, f in ((x, math.sin), (x, math.cos), (y, math.sin), (y, math.cos)) for w in waves]
            )
    torch.testing.assert_close(sine_positions(2, 3, 12), torch.tensor(rows))


def test_size_is_counted_by_hand_and_patches_are_told_apart() -> None:
    torch.manual_seed(0)
    net = ImageClassifier("vit").net.eval()
    block = 2 * 2 * 64 + (64 * 192 + 192) + (64 * 64 + 64) + (64 * 256 + 256) + (256 * 64 + 64)
    assert sum(p.numel() for p in net.parameters()) == (16 * 64 + 64) + 4 * block + 2 * 64 + (64 * 10 + 10)
    image = torch.randn(1, 1, 28, 28)
    swapped = image.clone()
    swapped[..., :4, :4], swapped[..., 4:8, 8:12] = image[..., 4:8, 8:12], image[..., :4, :4]
    assert net(image).shape == (1, 10)
    assert not torch.allclose(net(image), net(swapped), atol=1e-4)


def test_wrong_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="width=10 must be a multiple of 4 and of heads=5"):
        VisionTransformer(1, 10, width=10, heads=5)
    with pytest.raises(ValueError, match="an image of 30 x 28 is not covered by patches of 4"):
        VisionTransformer(1, 10)(torch.zeros(1, 1, 30, 28))
