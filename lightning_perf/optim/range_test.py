"""A learning rate from a range test: train while the rate grows exponentially, and read it off the loss.

Pure: rates and losses in, a rate out. Who trains is somebody else's business.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

_HALF_WIDTH = 2
_SAFETY = 4.0
_NOISE = 4.0
_DIVERGED = 4.0
_FIRST = 10


def growing_rates(low: float = 1e-6, high: float = 10.0, points: int = 50) -> list[float]:
    """``points`` learning rates from ``low`` to ``high``, each the same factor above the one before.

    Example::
        >>> growing_rates(0.1, 10.0, 3)
        [0.1, 1.0, 10.0]
    """
    if not 0 < low < high < math.inf or points < 2:
        raise ValueError(f"low={low!r}, high={high!r}, points={points!r}: 0 < low < high and two points at least.")
    return [low * (high / low) ** (index / (points - 1)) for index in range(points)]


def smoothed(losses: Sequence[float]) -> list[float]:
    """Each loss averaged with up to two neighbours on either side, weights 1 2 3 2 1.

    Centred, because a running average lags: at 7 rates per factor of ten, a lag of 10 steps would put the suggestion more
    than ten times too high.

    Example::
        >>> smoothed([0.0, 0.0, 9.0, 0.0, 0.0])
        [1.5, 2.25, 3.0, 2.25, 1.5]
    """
    result = []
    for centre in range(len(losses)):
        near = range(max(0, centre - _HALF_WIDTH), min(len(losses), centre + _HALF_WIDTH + 1))
        weights = [_HALF_WIDTH + 1 - abs(index - centre) for index in near]
        result.append(sum(w * losses[i] for w, i in zip(weights, near, strict=True)) / sum(weights))
    return result


def has_diverged(losses: Sequence[float]) -> bool:
    """Whether the last loss is not finite, or above the best by four times the fall so far or the range of the first ten.

    Made of differences, so that an offset of the loss, or a negative one, does not matter. The first ten losses, at rates
    too small to do anything, show the noise; before there are more, only infinities count.

    Example::
        >>> falling = [2.0] * 10 + [1.5]
        >>> has_diverged(falling), has_diverged([*falling, 4.0]), has_diverged([float("nan")])
        (False, True, True)
    """
    if not math.isfinite(losses[-1]):
        return True
    first, best = losses[:_FIRST], min(losses)
    if len(losses) <= _FIRST:
        return False
    scale = max(statistics.median(first) - best, max(first) - min(first))
    return losses[-1] - best > _DIVERGED * scale > 0


def suggest(rates: Sequence[float], losses: Sequence[float]) -> float | None:
    """A quarter of the rate at which the smoothed loss is lowest; ``None`` if it did not fall.

    On ten pairs of networks and optimizers, training at this rate, with a schedule that ends at zero, came nearer to
    training at the best rate than at the steepest slope or at a given share of the fall (``benchmarks.range_test``).

    Args:
        rates: growing learning rates.
        losses: the loss at each of them, before the step at that rate; what is not finite, and what follows, is left out.

    Returns:
        The rate, or ``None`` where the fall is less than four times the typical distance of a loss from the smoothed one,
        so that nothing can be read from it.

    Example::
        >>> rates = growing_rates(1e-4, 1.0, 9)
        >>> round(suggest(rates, [2.0, 2.0, 2.0, 1.6, 1.0, 0.5, 0.3, 0.9, 5.0]), 4)
        0.0079
    """
    finite = next((index for index, loss in enumerate(losses) if not math.isfinite(loss)), len(losses))
    losses = losses[:finite]
    if len(losses) < 2 * _HALF_WIDTH + 1:
        return None
    smooth = smoothed(losses)
    lowest = min(range(len(smooth)), key=smooth.__getitem__)
    fall = max(smooth[: lowest + 1]) - smooth[lowest]
    noise = statistics.median(abs(loss - middle) for loss, middle in zip(losses[: lowest + 1], smooth, strict=False))
    return rates[lowest] / _SAFETY if fall > _NOISE * noise else None
