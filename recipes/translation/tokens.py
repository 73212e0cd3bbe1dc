"""Sentences as bytes: nothing to learn, nothing to store, and every string comes back as it was."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

PAD, BEGIN, END = 0, 1, 2
FIRST_BYTE = 3
VOCABULARY = FIRST_BYTE + 256


def encode(sentence: str) -> Tensor:
    """The UTF-8 bytes of a sentence between a token for its begin and one for its end, (bytes + 2,) int64.

    Example::

        >>> encode("Ä%s").tolist()
        [1, 198, 135, 40, 118, 2]
    """
    return torch.tensor([BEGIN, *(byte + FIRST_BYTE for byte in sentence.encode()), END])


def decode(tokens: Tensor) -> str:
    """The sentence of a row (T,) of tokens up to the token of the end; bytes that are no UTF-8 become U+FFFD.

    Example::

        >>> decode(encode("%(name)s heißt"))
        '%(name)s heißt'
    """
    row = tokens.tolist()
    row = row[: row.index(END)] if END in row else row
    return bytes(token - FIRST_BYTE for token in row if token >= FIRST_BYTE).decode(errors="replace")


def join(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Encoded pairs as (sources (B, S), targets (B, T)), the shorter ones padded; the `collate_fn` of the loaders."""
    sources, targets = zip(*pairs, strict=True)
    return _padded(sources), _padded(targets)


def _padded(rows: Sequence[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=PAD)
