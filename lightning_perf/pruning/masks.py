"""Which weights stay: selection by score, unstructured and N:M, and masks as packed bits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


@torch.no_grad()
def keep_highest(scores: Mapping[str, Tensor], kept: Mapping[str, Tensor], pruned: int) -> dict[str, Tensor]:
    """Masks (True: stays) over all tensors together, of which exactly ``pruned`` entries are False.

    What is pruned in ``kept`` stays so and counts; then the lowest scores go, of equal ones those that come first.

    Args:
        scores: float32 by name.
        kept: the masks so far, of the same names and shapes.
        pruned: entries to be pruned in all; not fewer than are already.

    Example::

        >>> scores = {"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([2.0, 1.0])}
        >>> keep_highest(scores, {name: torch.ones(2, dtype=torch.bool) for name in scores}, 2)
        {'a': tensor([ True, False]), 'b': tensor([ True, False])}
    """
    flat = torch.cat([scores[name].masked_fill(~kept[name], -math.inf).flatten() for name in kept])
    chosen = _lowest(flat, pruned)
    parts = chosen.logical_not_().split([mask.numel() for mask in kept.values()])
    return {name: part.view(kept[name].shape) for name, part in zip(kept, parts, strict=True)}


def _lowest(values: Tensor, count: int) -> Tensor:
    """A mask of exactly ``count`` lowest values, of equal ones the first: as a stable sort finds them, in linear time."""
    if count <= 0:
        return torch.zeros_like(values, dtype=torch.bool)
    threshold = values.kthvalue(count).values
    chosen = values < threshold
    level = (values == threshold).nonzero().flatten()
    chosen[level[: count - int(chosen.sum())]] = True
    return chosen


@torch.no_grad()
def keep_n_of_m(score: Tensor, n: int, m: int, dim: int) -> Tensor:
    """A mask of the ``n`` highest scores of every ``m`` neighbours along ``dim``; of equal ones the first stay.

    Args:
        score: of one weight; an entry that must go has ``-inf``.
        n: entries that stay in a group.
        m: entries of a group; must divide the size along ``dim``.
        dim: the dimension along which neighbours form a group.

    Example::

        >>> keep_n_of_m(torch.tensor([[4.0, 1.0, 3.0, 2.0]]), 2, 4, 1)
        tensor([[ True, False,  True, False]])
    """
    last = score.movedim(dim, -1)
    groups = last.reshape(*last.shape[:-1], -1, m)
    order = groups.argsort(dim=-1, descending=True, stable=True)
    kept = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, order[..., :n], True)
    return kept.view(last.shape).movedim(-1, dim).contiguous()


@torch.no_grad()
def keep_towards_n_of_m(
    scores: Mapping[str, Tensor], kept: Mapping[str, Tensor], dims: Mapping[str, int], n: int, m: int, share: float
) -> dict[str, Tensor]:
    """Masks on the way to N:M: of what N:M would prune now, the lowest ``share``, over all tensors together.

    What is pruned stays pruned. With ``share`` 1 the result is N:M.

    Example::

        >>> score = {"w": torch.tensor([[1.0, 2.0], [8.0, 9.0]])}
        >>> kept = {"w": torch.ones(2, 2, dtype=torch.bool)}
        >>> keep_towards_n_of_m(score, kept, {"w": 1}, 1, 2, 0.5)
        {'w': tensor([[False,  True],
                [ True,  True]])}
    """
    final = {
        name: keep_n_of_m(scores[name].masked_fill(~mask, -math.inf), n, m, dims[name]) for name, mask in kept.items()
    }
    candidates = {name: scores[name].masked_fill(final[name], math.inf) for name in kept}
    total = sum(mask.numel() for mask in final.values()) - sum(int(mask.sum()) for mask in final.values())
    already = sum(int((~mask).sum()) for mask in kept.values())
    return keep_highest(candidates, kept, max(already, round(share * total)))


def parse_pattern(pattern: str) -> tuple[int, int] | None:
    """``"2:4"`` as (2, 4), and ``None`` for ``"unstructured"``.

    Raises:
        ValueError: neither ``"unstructured"`` nor N:M with 0 < N < M.

    Example::

        >>> parse_pattern("2:4"), parse_pattern("unstructured")
        ((2, 4), None)
    """
    if pattern == "unstructured":
        return None
    n, _, m = str(pattern).partition(":")
    if n.isdecimal() and m.isdecimal() and 0 < int(n) < int(m):
        return int(n), int(m)
    raise ValueError(
        f"pattern={pattern!r} is neither 'unstructured' nor N:M with N weights that stay of M neighbours, 0 < N < M, such "
        "as '2:4'."
    )


_WEIGHTS = (1, 2, 4, 8, 16, 32, 64, 128)


def pack(mask: Tensor) -> Tensor:
    """A boolean mask as uint8, eight entries a byte, in the order of its logical index, on the CPU.

    Example::

        >>> pack(torch.tensor([True, False, True]))
        tensor([5], dtype=torch.uint8)
    """
    bits = mask.detach().cpu().flatten().to(torch.uint8)
    bits = torch.nn.functional.pad(bits, (0, -bits.numel() % 8)).view(-1, 8)
    return (bits * torch.tensor(_WEIGHTS, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def unpack(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """The mask of ``shape`` that :func:`pack` packed.

    Example::

        >>> unpack(torch.tensor([5], dtype=torch.uint8), (3,))
        tensor([ True, False,  True])
    """
    bits = packed.unsqueeze(1).bitwise_and(torch.tensor(_WEIGHTS, dtype=torch.uint8, device=packed.device)).bool()
    return bits.flatten()[: math.prod(shape)].view(tuple(shape))
