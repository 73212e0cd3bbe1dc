"""Checks of numbers that a user passes; each error names the value, the rule and an example."""

from __future__ import annotations

import math
from numbers import Real

from torch import Tensor


def check_number(what: str, value: object, *, above_zero: bool = False) -> None:
    """A finite number of at least zero, or above it; a tensor of one element counts as the number it holds.

    Raises:
        ValueError: anything else.

    Example::
        >>> check_number("lr", -1.0, above_zero=True)
        Traceback (most recent call last):
        ValueError: lr=-1.0 must be a finite number above 0; give one, such as 1e-3.
    """
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    real = isinstance(value, Real) and not isinstance(value, bool)
    if not real or not math.isfinite(value) or value < 0 or (above_zero and value == 0):  # type: ignore[arg-type, operator]
        rule, example = ("above 0", "1e-3") if above_zero else ("of at least 0", "0.01")
        raise ValueError(f"{what}={value!r} must be a finite number {rule}; give one, such as {example}.")


def check_betas(betas: tuple[float, ...], count: int, *, above_zero: bool = False) -> None:
    """``count`` decay rates in [0, 1), or in (0, 1) for an optimizer that divides by the first of them.

    Raises:
        ValueError: another count, or a rate outside.

    Example::
        >>> check_betas((0.9, 1.0), 2)
        Traceback (most recent call last):
        ValueError: betas=(0.9, 1.0) must be 2 numbers in [0, 1), such as 0.9 each.
    """
    real = len(betas) == count and all(isinstance(beta, Real) and 0 <= beta < 1 for beta in betas)
    if not real or (above_zero and betas[0] == 0):
        where = "in [0, 1), the first above 0" if above_zero else "in [0, 1)"
        raise ValueError(f"betas={betas!r} must be {count} numbers {where}, such as 0.9 each.")
