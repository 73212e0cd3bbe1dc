"""What Muon and SOAP add to a training step, told before the first one: operations of the optimizer beside the model's.

A dense layer of m x n weights costs 6 m n operations of forward and backward per sample and position that passes through
it. Operations are not time: small matrices run far below a device's peak, so a share computed here is a lower bound.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable


@runtime_checkable
class Costly(Protocol):
    """An optimizer whose own work can show beside that of the model."""

    def cost_note(self) -> str:
        """From how many samples and positions per step on it does not."""
        ...


def muon_flops(shapes: Iterable[tuple[int, int]], *, steps: int = 5) -> float:
    """Operations of one Newton-Schulz orthogonalization of matrices with these shapes.

    With m the short and n the long side, each iteration computes X Xᵀ (2 m² n), its square (2 m³) and a product
    with X (2 m² n).

    Example::
        >>> muon_flops([(10, 10)], steps=1)
        6000.0
    """
    sides = [(min(shape), max(shape)) for shape in shapes]
    return float(steps * sum(4 * m**2 * n + 2 * m**3 for m, n in sides))


def soap_flops(shapes: Iterable[tuple[int, int]], *, frequency: int = 10, max_dim: int = 2048) -> float:
    """Operations of one step of SOAP on matrices with these shapes, decompositions spread over the steps.

    A side of length d costs 2 d² times the other side for each of: the preconditioner, two rotations into the basis and
    one back; and every ``frequency`` steps a product and a QR decomposition with its Q, together 2 d³ + 8/3 d³.

    Example::
        >>> soap_flops([(3, 30)], frequency=1, max_dim=3)
        2286.0
    """
    total = 0.0
    for rows, columns in shapes:
        for side, other in ((rows, columns), (columns, rows)):
            if side <= max_dim:
                total += 8 * side**2 * other + (2 + 8 / 3) * side**3 / frequency
    return total


def cost_share(flops: float, shapes: Iterable[tuple[int, int]], tokens: float) -> float:
    """``flops`` of the optimizer's step over those of forward and backward through layers of these shapes.

    Args:
        flops: From :func:`muon_flops` or :func:`soap_flops`.
        shapes: Shapes of the weights.
        tokens: Samples times positions (pixels of the output for a convolution) per optimizer step.

    Example::
        >>> cost_share(muon_flops([(64, 64)]), [(64, 64)], tokens=640)
        0.5
    """
    return flops / (6 * tokens * sum(rows * columns for rows, columns in shapes))


def tokens_for_share(flops: float, shapes: Iterable[tuple[int, int]], share: float = 0.1) -> int:
    """Samples times positions per optimizer step from which on the optimizer costs at most ``share`` of the model.

    Example::
        >>> tokens_for_share(muon_flops([(64, 64)]), [(64, 64)])
        3200
    """
    return round(cost_share(flops, shapes, 1.0) / share)


def note(what: str, flops: float, shapes: Sequence[tuple[int, int]]) -> str:
    """One sentence for the user, before the first step.

    Example::
        >>> note("Newton-Schulz", muon_flops([(64, 64)]), [(64, 64)])[-48:]
        ' step sees fewer than 3,200 samples x positions.'
    """
    if not shapes:
        return f"no matrix for {what}: every parameter is stepped by AdamW."
    matrices = "1 matrix" if len(shapes) == 1 else f"{len(shapes)} matrices"
    return (
        f"{what} on {matrices} costs over 10 % of forward and backward through them where a step sees fewer than "
        f"{tokens_for_share(flops, shapes):,} samples x positions."
    )
