"""The warm-up of an optimizer that brings its own: a share of the run, and enough steps for a module that needs them.

A network of layer norms or attention, or one that looks up embeddings, does not recover within a short run from too fast
a start: 15 steps of warm-up in 300 left a small vision transformer behind every Adam, 60 put it ahead of all; networks of
convolutions and plain layers lose next to nothing by the longer one (``benchmarks.auto_default``).
"""

from __future__ import annotations

from torch import nn

from lightning_perf.optim.schedules import resolve_warmup

UNKNOWN_LENGTH = 100
AT_LEAST = 60
_AT_MOST = 0.2
_TYPES = (nn.LayerNorm, nn.RMSNorm, nn.MultiheadAttention, nn.Embedding)
_NAMES = ("attention", "layernorm", "rmsnorm")


def needs_warmup(module: nn.Module) -> str | None:
    """The class for whose sake ``module`` must start slowly; ``None`` without one.

    Example::
        >>> needs_warmup(nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8)))
        >>> needs_warmup(nn.TransformerEncoderLayer(8, 2))
        'MultiheadAttention'
    """
    for part in module.modules():
        name = type(part).__name__
        if isinstance(part, _TYPES) or any(word in name.lower() for word in _NAMES):
            return name
    return None


def own_warmup(module: nn.Module, warmup: float | int, total: int | None) -> tuple[int, str]:
    """Steps of warm-up, and in words why they are more than was asked for, if they are.

    Args:
        module: what is trained.
        warmup: a number of steps (int), taken as it is, or a share of the run (float): then a module that needs a slow start
            gets at least 60 steps, or a fifth of a shorter run.
        total: optimizer steps of the run; ``None`` where that is unknown, which makes a share 100 steps.

    Raises:
        ValueError: as :func:`lightning_perf.optim.resolve_warmup`.

    Example::
        >>> own_warmup(nn.Linear(1, 1), 0.05, 300), own_warmup(nn.Embedding(2, 2), 0.05, 300)
        ((15, ''), (60, ' (5 % of the run would be 15; at least 60, or a fifth of the run, for the sake of Embedding)'))
    """
    if total is None:
        return (warmup if isinstance(warmup, int) else UNKNOWN_LENGTH), ""
    steps = resolve_warmup(warmup, total)
    floor = min(AT_LEAST, int(_AT_MOST * total))
    if isinstance(warmup, int) or not warmup or steps >= floor or (name := needs_warmup(module)) is None:
        return steps, ""
    rule = f"at least {AT_LEAST}, or a fifth of the run, for the sake of {name}"
    return floor, f" ({100 * warmup:.3g} % of the run would be {steps}; {rule})"
