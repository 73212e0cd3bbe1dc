"""The warm-up of an optimizer that brings its own, and its average: by what the module is made of.

A network of layer norms or attention, or one that looks up embeddings, does not recover within a short run from too fast
a start, and its average had better not follow the latest weights too closely. Networks of convolutions and plain layers
learn faster with a short warm-up and an average that does. ``benchmarks.auto_default`` measured both.
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


def rate_and_power(module: nn.Module) -> tuple[float, float]:
    """Learning rate, and exponent r of t in the weights of the average, of schedule-free AdamW for ``module``.

    Where a slow start is needed, the rate at which it won AlgoPerf's self-tuning track and the paper's r.

    Example::
        >>> rate_and_power(nn.Embedding(2, 2)), rate_and_power(nn.Conv2d(1, 1, 3))
        ((0.0025, 0.0), (0.005, 1.0))
    """
    return (5e-3, 1.0) if needs_warmup(module) is None else (2.5e-3, 0.0)


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
