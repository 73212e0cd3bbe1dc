"""Arithmetic of gradients on their way: bfloat16, and int8 in blocks with a scale each. Pure functions of tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: Elements that share a scale. The scale costs 4 bytes: 1.6 % on top of the codes.
BLOCK = 256
_LARGEST = 127.0
#: Every process sends its int8 gradients to every other one: from 5 processes on bfloat16, added on the way, is less.
MOST_INT8 = 4


def travels_as(compression: str | None, world_size: int) -> str | None:
    """What gradients are sent as, among so many processes.

    Example::

        >>> travels_as("int8", 4), travels_as("int8", 5), travels_as(None, 5)
        ('int8', 'bf16', None)
    """
    return "bf16" if compression == "int8" and world_size > MOST_INT8 else compression


def swaps(compression: str | None, world_size: int, *, on_cpu: bool, skips_unused: bool = False) -> bool:
    """Whether processes send their gradients straight to each other, rather than by a collective of the backend.

    Args:
        compression: ``None``, ``"bf16"`` or ``"int8"``, as asked for.
        world_size: number of processes.
        on_cpu: whether gradients are on the CPU.
        skips_unused: whether DDP leaves out buckets that no process used (``skip_all_reduce_unused_params``).

    Example::

        >>> [swaps("bf16", 2, on_cpu=True), swaps("bf16", 3, on_cpu=True), swaps("int8", 3, on_cpu=True)]
        [True, False, True]
    """
    sent = travels_as(compression, world_size)
    return on_cpu and not skips_unused and (sent == "int8" or (sent == "bf16" and world_size == 2))


def padded(numel: int) -> int:
    """``numel`` rounded up to whole blocks."""
    return -(-numel // BLOCK) * BLOCK


def quantize(values: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (int8) and scales (float32, one a block) of a flat tensor of whole blocks.

    A block is scaled so that its largest magnitude becomes 127; a block of zeros has scale zero. A value that is not finite
    makes its block's scale not finite, so that whoever decodes it sees it.

    Example::

        >>> codes, scales = quantize(torch.full((256,), -2.0))
        >>> codes[0].item(), round(scales[0].item() * 127, 3)
        (-127, 2.0)
    """
    blocks = values.view(-1, BLOCK)
    scales = blocks.abs().amax(1) / _LARGEST
    inverse = torch.where(scales > 0, 1 / scales, 0.0)
    codes = (blocks * inverse[:, None]).round_().clamp_(-_LARGEST, _LARGEST)
    return codes.to(torch.int8).view(-1), scales


def dequantize(codes: Tensor, scales: Tensor) -> Tensor:
    """The values that :func:`quantize` stands for, as float32."""
    return (codes.view(-1, BLOCK).float() * scales[:, None]).view(-1)


def pack(codes: Tensor, scales: Tensor) -> Tensor:
    """One tensor of bytes, so that one collective sends both."""
    return torch.cat([scales.view(torch.uint8), codes.view(torch.uint8)])


def unpack(payload: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and scales out of :func:`pack`."""
    split = 4 * (payload.numel() // (BLOCK + 4))
    return payload[split:].view(torch.int8), payload[:split].view(torch.float32)


def mean_of_payloads(payloads: Sequence[Tensor]) -> Tensor:
    """The mean of what all processes sent, added in the order of their ranks: the same bits everywhere."""
    total = dequantize(*unpack(payloads[0]))
    for payload in payloads[1:]:
        total += dequantize(*unpack(payload))
    return total / len(payloads)


def quantize_with_feedback(gradients: Tensor, residual: Tensor) -> Tensor:
    """What to send for ``gradients``; ``residual`` is added first, and then holds what the rounding lost.

    Where a gradient is not finite the residual is forgotten: a skipped step must not poison the next.

    Source: Seide et al., 1-bit stochastic gradient descent (2014), for the feedback. Deviation: 8 bits, scaled by block.
    """
    residual += gradients
    codes, scales = quantize(residual)
    residual -= dequantize(codes, scales)
    residual.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
    return pack(codes, scales)


def bytes_on_the_wire(compression: str | None, sizes: Sequence[int], world_size: int) -> float:
    """Bytes that one process sends for one reduction of float32 gradients.

    Args:
        compression: ``None`` (ring all-reduce of float32), ``"bf16"`` or ``"int8"``.
        sizes: number of elements of every parameter.
        world_size: number of processes.

    Example::

        >>> bytes_on_the_wire("int8", [1024, 1], 2), bytes_on_the_wire(None, [1024, 1], 2)
        (1300, 4100.0)
    """
    ring = 2 * (world_size - 1) / world_size
    if compression == "int8":
        return (world_size - 1) * sum(padded(size) // BLOCK * (BLOCK + 4) for size in sizes)
    if compression == "bf16":
        return 2 * sum(sizes) * (world_size - 1 if world_size == 2 else ring)
    return 4 * sum(sizes) * ring
