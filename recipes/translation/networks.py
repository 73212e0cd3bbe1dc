"""An encoder-decoder transformer after Vaswani et al. 2017 (Attention Is All You Need), and its greedy translation."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .tokens import BEGIN, END, PAD


class Block(nn.Module):
    """Self-attention, attention to the source if `crosses`, two linear layers; each on the normalised input and added.

    Shapes: (B, T, width) to (B, T, width); `source` (B, S, width); `source_padding` (B, S), true where nothing is.
    Deviation from Vaswani et al.: the normalisation stands before each part and not after it (Xiong et al. 2020),
    GELU in the place of ReLU, no dropout on the attention weights.
    """

    def __init__(self, width: int, heads: int, dropout: float, crosses: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm2 = nn.LayerNorm(width) if crosses else None
        self.cross = nn.MultiheadAttention(width, heads, batch_first=True) if crosses else None
        self.norm3 = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        padding: Tensor | None = None,
        causal: Tensor | None = None,
        source: Tensor | None = None,
        source_padding: Tensor | None = None,
    ) -> Tensor:
        y = self.norm1(x)
        mixed, _ = self.attention(
            y, y, y, key_padding_mask=padding, attn_mask=causal, is_causal=causal is not None, need_weights=False
        )
        x = x + self.dropout(mixed)
        if self.cross is not None and self.norm2 is not None:
            mixed, _ = self.cross(self.norm2(x), source, source, key_padding_mask=source_padding, need_weights=False)
            x = x + self.dropout(mixed)
        return x + self.dropout(self.narrow(F.gelu(self.widen(self.norm3(x)))))


class EncoderDecoder(nn.Module):
    """Embeddings and positions, `layers` encoder blocks over the source, `layers` decoder blocks, logits.

    Shapes: source (B, S) and target (B, T) int64 to logits (B, T, vocabulary) of the token that follows each of
    `target`. Both sides and the output layer share one embedding. Tokens `PAD` of the source are attended to by
    nobody; those at the end of the target need no mask, since no position sees what follows it.

    Raises:
        ValueError: `heads` does not divide `width`, or `width` is odd.

    Example::

        >>> net = EncoderDecoder(259, width=128, layers=2, heads=4)
        >>> net(torch.ones(3, 7, dtype=torch.int64), torch.ones(3, 5, dtype=torch.int64)).shape
        torch.Size([3, 5, 259])
    """

    def __init__(self, vocabulary: int, width: int, layers: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if width % heads or width % 2:
            raise ValueError(f"width={width} is not even and divisible by heads={heads}: choose a multiple of both.")
        self.width = width
        self.tokens = nn.Embedding(vocabulary, width)
        self.dropout = nn.Dropout(dropout)
        self.encoder = nn.ModuleList(Block(width, heads, dropout, crosses=False) for _ in range(layers))
        self.encoder_norm = nn.LayerNorm(width)
        self.decoder = nn.ModuleList(Block(width, heads, dropout, crosses=True) for _ in range(layers))
        self.decoder_norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight
        nn.init.normal_(self.tokens.weight, std=width**-0.5)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        return self.decode(self.encode(source), source == PAD, target)

    def encode(self, source: Tensor) -> Tensor:
        """What the decoder attends to: (B, S) to (B, S, width)."""
        x, padding = self._embedded(source), source == PAD
        for block in self.encoder:
            x = block(x, padding=padding)
        return self.encoder_norm(x)

    def decode(self, encoded: Tensor, padding: Tensor, target: Tensor) -> Tensor:
        """Logits (B, T, vocabulary) from what `encode` returned and where its source is `PAD`."""
        x = self._embedded(target)
        length = target.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=target.device).triu(1)
        for block in self.decoder:
            x = block(x, causal=causal, source=encoded, source_padding=padding)
        return self.head(self.decoder_norm(x))

    def _embedded(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) * math.sqrt(self.width)
        return self.dropout(x + positions(tokens.shape[1], self.width, x))


def positions(length: int, width: int, like: Tensor) -> Tensor:
    """Sines in the first and cosines in the second half of (length, width), with wavelengths from 2 pi to 20000 pi.

    Of the dtype and on the device of `like`. Deviation from Vaswani et al.: sines and cosines do not alternate.
    """
    rates = 1e-4 ** (torch.arange(width // 2, device=like.device) / (width // 2))
    angles = torch.arange(length, device=like.device)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1).to(like.dtype)


@torch.no_grad()
def translate(net: EncoderDecoder, source: Tensor, longest: int) -> Tensor:
    """The translation of each row of `source` (B, S) by the most likely token at every step: (B, up to `longest`).

    A row ends with the token `END`, after which comes `PAD`; a row that reached `longest` may lack it. The decoder runs
    over all tokens so far at every step: `nn.MultiheadAttention` keeps nothing between two calls.
    """
    encoded, padding = net.encode(source), source == PAD
    tokens = source.new_full((len(source), longest + 1), PAD)
    tokens[:, 0] = BEGIN
    going = torch.arange(len(source), device=source.device)
    step = 0
    while step < longest and len(going):
        logits = net.decode(encoded[going], padding[going], tokens[going, : step + 1])[:, -1].float()
        logits[:, [PAD, BEGIN]] = -math.inf
        new = logits.argmax(-1)
        step += 1
        tokens[going, step] = new
        going = going[new != END]
    return tokens[:, 1 : step + 1]
