"""Newton-Schulz iteration: matrices pushed towards the nearest orthogonal ones, batched and in the cheapest precision.

Equal shapes go through one batched product (a matrix and the transpose of another count as equal), because for small
matrices the calls cost more than the arithmetic. The precision is chosen from the work: bfloat16, which the iteration
was made for, where the device computes it fast and the products are large enough to profit, float32 elsewhere.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""a, b, c of Keller Jordan's quintic: steepest at zero, at the price of singular values that end in about [0.7, 1.2]."""

# Multiply-adds of one product. On a Zen 4 core: bfloat16 pays from 4e6 in a batch on; beyond 2.5e7 in a single matrix,
# products of pairs of matrices are as fast as batched ones and need no copy.
_BF16_FROM = 4e6
_ALONE_FROM = 2.5e7
_BATCH_ELEMENTS = 1 << 20
_DEVICE_BATCH_ELEMENTS = 1 << 26


def newton_schulz(matrices: Tensor, *, steps: int = 5, eps: float = 1e-7) -> Tensor:
    """Orthogonalize a matrix, or each of a batch of them, in the dtype that it has::

        X = G / max(‖G‖, ε), transposed if tall
        steps times:  A = X Xᵀ;  X = a X + (b A + c A²) X

    Source: Keller Jordan's Muon, https://kellerjordan.github.io/posts/muon/.

    Example::
        >>> rotated = newton_schulz(torch.tensor([[0.0, 5.0], [-5.0, 0.0]]))
        >>> bool((rotated @ rotated.mT - torch.eye(2)).abs().max() < 0.5)
        True
    """
    a, b, c = COEFFICIENTS
    tall = matrices.size(-2) > matrices.size(-1)
    x = matrices.mT if tall else matrices
    product = torch.addmm if x.ndim == 2 else torch.baddbmm
    x = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp_(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        polynomial = product(gram, gram, gram, beta=b, alpha=c)
        x = product(x, polynomial, x, beta=a)
    return x.mT if tall else x


def orthogonalize(stacks: Sequence[Tensor], *, steps: int = 5) -> list[Tensor]:
    """:func:`newton_schulz` of many matrices at once, each result in the dtype of its matrix.

    Args:
        stacks: Three-dimensional tensors of any shapes: stacks of matrices.
        steps: Iterations.

    Example::
        >>> [tuple(x.shape) for x in orthogonalize([torch.ones(1, 2, 3), torch.ones(5, 3, 2), torch.ones(1, 4, 4)])]
        [(1, 2, 3), (5, 3, 2), (1, 4, 4)]
    """
    results: list[Tensor] = [torch.empty(0)] * len(stacks)
    for indices in _batches(stacks):
        wide = [_wide(stacks[index]) for index in indices]
        counts = [stack.size(0) for stack in wide]
        batch = torch.cat(wide) if len(wide) > 1 else wide[0]
        work = batch.to(work_dtype(batch, len(batch)))
        if len(work) == 1:  # products of two matrices are faster than batches of one
            found = newton_schulz(work[0], steps=steps).unsqueeze(0)
        else:
            found = newton_schulz(work, steps=steps)
        for index, result in zip(indices, found.to(batch.dtype).split(counts), strict=True):
            stack = stacks[index]
            results[index] = result.mT if stack.size(1) > stack.size(2) else result
    return results


def work_dtype(matrix: Tensor, count: int = 1) -> torch.dtype:
    """The dtype in which ``count`` matrices such as ``matrix`` are orthogonalized fastest; float64 stays float64."""
    if matrix.dtype == torch.float64:
        return torch.float64
    if matrix.device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if matrix.device.type == "cpu" and _cpu_multiplies_bf16() and count * _work(matrix) >= _BF16_FROM:
        return torch.bfloat16
    return torch.float32


def _batches(stacks: Sequence[Tensor]) -> list[list[int]]:
    """Indices of the stacks that go through one product."""
    buckets: dict[tuple[object, ...], list[int]] = {}
    for index, stack in enumerate(stacks):
        rows, columns = stack.shape[1:]
        buckets.setdefault((min(rows, columns), max(rows, columns), stack.dtype, stack.device), []).append(index)
    batches = []
    for indices in buckets.values():
        first = stacks[indices[0]]
        on_cpu = first.device.type == "cpu"
        limit = _BATCH_ELEMENTS if on_cpu else _DEVICE_BATCH_ELEMENTS
        alone = on_cpu and _work(first) >= _ALONE_FROM
        batch: list[int] = []
        filled = 0
        for index in indices:
            if batch and (alone or filled + stacks[index].numel() > limit):
                batches.append(batch)
                batch, filled = [], 0
            batch.append(index)
            filled += stacks[index].numel()
        batches.append(batch)
    return batches


def _wide(stack: Tensor) -> Tensor:
    return stack.mT if stack.size(-2) > stack.size(-1) else stack


def _work(matrix: Tensor) -> float:
    rows, columns = matrix.shape[-2:]
    return float(min(rows, columns)) ** 2 * max(rows, columns)


@functools.cache
def _cpu_multiplies_bf16() -> bool:
    # Private names of torch: whether the CPU has instructions for it, without which bfloat16 is emulated and slow.
    probes = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(probe is not None and probe() for probe in probes)
