"""What was counted: FLOPs of a step by pass, module and operator."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ModuleFlops:
    """One module's part of a count, everything below it included.

    Args:
        forward: FLOPs of the forward pass.
        backward: FLOPs of the gradients.
        recompute: FLOPs spent again on what was known before.
        bytes: bytes moved at least, in all passes.
        ops: operators dispatched.
    """

    forward: int = 0
    backward: int = 0
    recompute: int = 0
    bytes: int = 0
    ops: int = 0

    @property
    def model(self) -> int:
        """FLOPs that the model needs: forward and backward."""
        return self.forward + self.backward


@dataclass(frozen=True)
class FlopCount:
    """FLOPs of everything that ran inside a ``FlopCounter``; a multiply and an add are two.

    Args:
        forward: FLOPs of the forward pass.
        backward: FLOPs of the gradients.
        recompute: FLOPs spent again on what was known before: activation checkpointing, and the scores that a fused
            attention computes once more in its backward. They are work of the hardware, not of the model.
        optimizer: FLOPs of the optimizer's own products, such as Muon's.
        bytes: bytes moved at least: inputs and outputs of every operator.
        ops: operators dispatched.
        by_module: qualified name -> its part, submodules included; the root is "". A module registered twice counts
            under its first name.
        by_operator: operator -> FLOPs, recomputation included.
        by_dtype: dtype that products were computed in, such as "bfloat16" -> FLOPs of the model.
        uncounted: operator without a known formula that may be costly -> calls. If there are any, the count is a lower
            bound.

    Example::

        >>> count = FlopCount(forward=100, backward=200, recompute=50)
        >>> count.model, count.total
        (300, 350)
    """

    forward: int = 0
    backward: int = 0
    recompute: int = 0
    optimizer: int = 0
    bytes: int = 0
    ops: int = 0
    by_module: Mapping[str, ModuleFlops] = field(default_factory=dict)
    by_operator: Mapping[str, int] = field(default_factory=dict)
    by_dtype: Mapping[str, int] = field(default_factory=dict)
    uncounted: Mapping[str, int] = field(default_factory=dict)

    @property
    def model(self) -> int:
        """FLOPs that the model needs, for MFU: forward and backward, nothing twice."""
        return self.forward + self.backward

    @property
    def total(self) -> int:
        """FLOPs that the hardware executed, for HFU: recomputation and the optimizer's products too."""
        return self.model + self.recompute + self.optimizer

    @property
    def intensity(self) -> float | None:
        """FLOPs per byte moved, or None if nothing moved."""
        return self.total / self.bytes if self.bytes else None

    def table(self, depth: int | None = 2) -> str:
        """The count as text: modules down to ``depth`` (None: all), then what could not be counted.

        Example::

            >>> print(FlopCount(30, 60, by_module={"": ModuleFlops(30, 60), "net": ModuleFlops(30, 60)}).table())
            module  forward  backward  recompute   share
            (root)       30        60          0  100.0%
              net        30        60          0  100.0%
            model 90 FLOPs a step, executed 90
        """
        rows = [("module", "forward", "backward", "recompute", "share")]
        for name, part in self.by_module.items():
            level = name.count(".") + 1 if name else 0
            if (depth is None or level <= depth) and (part.model or part.recompute):
                share = f"{part.model / self.model:.1%}" if self.model else "-"
                numbers = (quantity(part.forward), quantity(part.backward), quantity(part.recompute))
                rows.append(("  " * level + (name.rpartition(".")[2] or "(root)"), *numbers, share))
        lines = _aligned(rows)
        summary = f"model {quantity(self.model)} FLOPs a step, executed {quantity(self.total)}"
        if self.intensity is not None:
            summary += f", {self.intensity:.1f} FLOPs a byte, {self.ops} operators"
        lines.append(summary)
        if self.uncounted:
            names = ", ".join(f"{name} ({calls}x)" for name, calls in self.uncounted.items())
            lines.append(f"a lower bound: no formula is known for {names}")
        return "\n".join(lines)


def quantity(number: float) -> str:
    """A number with a decimal prefix and four digits: ``1.235 G``.

    Example::

        >>> quantity(1_234_567_890), quantity(999)
        ('1.235 G', '999')
    """
    for prefix, scale in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= scale:
            return f"{number / scale:.4g} {prefix}"
    return f"{number:.4g}"


def _aligned(rows: Iterable[tuple[str, ...]]) -> list[str]:
    rows = list(rows)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        row[0].ljust(widths[0])
        + "".join("  " + cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    ]
