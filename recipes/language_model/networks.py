"""A decoder-only transformer with pre-normalisation, after Radford et al. 2019 (GPT-2), section 2.3."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CausalAttention(nn.Module):
    """Multi-head self-attention in which a position sees itself and what comes before it.

    Shapes: (B, T, width) to (B, T, width). Deviation from GPT-2: no dropout on the attention weights, which would keep
    `scaled_dot_product_attention` from its one-pass kernels on the CPU.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention, then two linear layers with a GELU; each on the normalised input and added to it."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = CausalAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.narrow(F.gelu(self.widen(self.norm2(x)))))


class Decoder(nn.Module):
    """Token and position embeddings, `layers` blocks, a last normalisation, logits over the vocabulary.

    Shapes: (B, T) int64 to (B, T, vocabulary), T up to `block_size`. With `tied` the output layer is the token
    embedding, transposed; it has no bias either way. Weights start as in GPT-2: normal with deviation 0.02, those
    that end a residual branch divided by sqrt(2 * layers).

    Raises:
        ValueError: `heads` does not divide `width`.

    Example::

        >>> sum(p.numel() for p in Decoder(256, width=128, layers=4, heads=4, block_size=128).parameters())
        842496
    """

    def __init__(
        self,
        vocabulary: int,
        width: int,
        layers: int,
        heads: int,
        block_size: int,
        dropout: float = 0.0,
        tied: bool = True,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width={width} is not divisible by heads={heads}: choose a multiple of the heads.")
        self.block_size = block_size
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(block_size, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(Block(width, heads, dropout) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        if tied:
            self.head.weight = self.tokens.weight
        self._initialise(layers)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        if length > self.block_size:
            raise ValueError(f"{length} tokens are more than block_size={self.block_size}: cut the input.")
        x = self.tokens(tokens) + self.positions.weight[:length]
        return self.head(self.norm(self.blocks(self.dropout(x))))

    def _initialise(self, layers: int) -> None:
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                ends_branch = name.endswith((".out", ".narrow"))
                nn.init.normal_(module.weight, std=0.02 / math.sqrt(2 * layers) if ends_branch else 0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)


@torch.no_grad()
def generate(net: Decoder, tokens: Tensor, count: int, temperature: float = 1.0) -> Tensor:
    """`tokens` (B, T) with `count` more appended: each drawn from the softmax of the last logits over `temperature`.

    At temperature 0 the most likely token is taken. Only the last `block_size` tokens are looked at.

    Raises:
        ValueError: `temperature` is negative, or there is no token to start from.
    """
    if temperature < 0:
        raise ValueError(f"temperature={temperature} is negative: use 0 for the most likely token, or more.")
    if not tokens.shape[1]:
        raise ValueError("there is no token to go on from: give every row at least one.")
    for _ in range(count):
        logits = net(tokens[:, -net.block_size :])[:, -1].float()
        if temperature:
            new = torch.multinomial((logits / temperature).softmax(-1), 1)
        else:
            new = logits.argmax(-1, keepdim=True)
        tokens = torch.cat([tokens, new], dim=1)
    return tokens
