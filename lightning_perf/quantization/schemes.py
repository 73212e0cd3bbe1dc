"""Schemes of quantization as rows: what weights and activations are rounded to, and in which layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

_ALL = ("convolution", "linear", "embedding", "attention", "recurrent")


@dataclass(frozen=True)
class Scheme:
    """One way to quantize.

    Args:
        name: what users write.
        summary: one line.
        number: kind of number of the weights; ``float8`` is e4m3.
        bits: of a weight.
        group: weights along the input that share a scale; None: one scale per output channel.
        activations: ``static`` rounds the inputs of layers to ranges that were seen before, ``dynamic`` to the range of the
            input at hand, ``none`` leaves them alone.
        layers: kinds of layers that it covers.

    Example::

        >>> get_scheme("int8").activations
        'static'
    """

    name: str
    summary: str
    number: Literal["integer", "float8"] = "integer"
    bits: int = 8
    group: int | None = None
    activations: Literal["static", "dynamic", "none"] = "none"
    layers: tuple[str, ...] = _ALL

    @property
    def largest(self) -> int:
        """The largest integer of a weight; the smallest is its negative."""
        return 2 ** (self.bits - 1) - 1


_ROWS = (
    Scheme("int8", "int8 weights per channel, uint8 activations per tensor", activations="static"),
    Scheme(
        "int8-dynamic",
        "int8 weights per channel, uint8 inputs of linear layers in the range of each input",
        activations="dynamic",
        layers=("linear",),
    ),
    Scheme("int8-weight-only", "int8 weights per channel, activations left alone"),
    Scheme(
        "int4", "int4 weights of linear layers in groups of 32 along the input", bits=4, group=32, layers=("linear",)
    ),
    Scheme(
        "float8",
        "float8 (e4m3) weights per channel and inputs per tensor, of linear layers",
        number="float8",
        activations="dynamic",
        layers=("linear",),
    ),
)
SCHEMES: dict[str, Scheme] = {row.name: row for row in _ROWS}


def get_scheme(name: str) -> Scheme:
    """The scheme called ``name``.

    Raises:
        ValueError: no scheme has that name; the message lists the known ones.
    """
    if not isinstance(name, str) or name not in SCHEMES:
        raise ValueError(f"scheme={name!r} is not known; choose one of {', '.join(SCHEMES)}.")
    return SCHEMES[name]
