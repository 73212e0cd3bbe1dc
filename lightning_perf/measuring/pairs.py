"""Comparing noisy timings honestly: interleaved pairs, bootstrap intervals, outliers."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Interval:
    """An estimate with the interval around it.

    ``level`` is the coverage the interval can claim, ``pairs`` the number of pairs behind it (None: not from pairs).
    With fewer than three pairs ``low`` and ``high`` are simply the smallest and the largest pair, and the text says so.

    Example::

        >>> print(Interval(1.312, 1.271, 1.348, level=0.95, pairs=12))
        1.31x [1.27, 1.35]
        >>> print(Interval(1.3, 1.2, 1.4, level=0.5, pairs=2))
        1.30x [1.20, 1.40] (range of 2 pairs)
    """

    estimate: float
    low: float
    high: float
    level: float = 0.95
    pairs: int | None = None

    def excludes(self, value: float) -> bool:
        """Whether the interval is one that resolves a difference from ``value``; a range of one or two pairs never is."""
        return (self.pairs is None or self.pairs >= 3) and not self.low <= value <= self.high

    def reach(self, value: float = 1.0) -> float:
        """The larger distance of the two ends from ``value``: what an A/A comparison cannot tell from nothing."""
        return max(abs(self.low - value), abs(self.high - value))

    def text(self, digits: int = 2, unit: str = "x", scale: float = 1.0, signed: bool = False) -> str:
        """The interval as a reader sees it; ``signed`` writes a plus in front of gains, for differences."""
        sign = "+" if signed else ""
        estimate, low, high = (f"{scale * end:{sign}.{digits}f}" for end in (self.estimate, self.low, self.high))
        if self.pairs is not None and self.pairs < 3:
            return f"{estimate}{unit} [{low}, {high}] (range of {self.pairs} pair{'s' * (self.pairs != 1)})"
        return f"{estimate}{unit} [{low}, {high}]"

    def __str__(self) -> str:
        return self.text()


def paired_ratio(
    numerators: Sequence[float],
    denominators: Sequence[float],
    *,
    level: float = 0.95,
    draws: int = 4000,
    seed: int = 0,
) -> Interval:
    """Median of the ratios of pairs, with a percentile bootstrap over the pairs.

    The interval's ``level`` is at most ``1 - 2**(1 - n)`` for n pairs, since no two of n values enclose the true median
    with more certainty than that: three pairs claim 75 %, never 95 %. Random numbers come from a generator of its own.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13. Deviation: the capped level.

    Raises:
        ValueError: no pairs, sides of unequal length, or a value that is not positive and finite.

    Example::

        >>> paired_ratio([4.0, 6.2, 5.0], [2.0, 3.1, 2.5]).estimate
        2.0
    """
    top, bottom = _pairs(numerators, denominators)
    for value in (*top, *bottom):
        if value <= 0:
            raise ValueError(
                f"a ratio of pairs needs positive values, got {value!r}; compare such values by difference"
            )
    return _bootstrap([a / b for a, b in zip(top, bottom, strict=True)], level, draws, seed)


def paired_difference(
    values: Sequence[float],
    references: Sequence[float],
    *,
    level: float = 0.95,
    draws: int = 4000,
    seed: int = 0,
) -> Interval:
    """Median of ``value - reference`` over pairs, with the interval of `paired_ratio`.

    Raises:
        ValueError: no pairs, sides of unequal length, or a value that is not finite.

    Example::

        >>> paired_difference([0.5, 0.75, 0.5], [0.25, 0.5, 0.25]).estimate
        0.25
    """
    left, right = _pairs(values, references)
    return _bootstrap([a - b for a, b in zip(left, right, strict=True)], level, draws, seed)


def _pairs(left: Sequence[float], right: Sequence[float]) -> tuple[list[float], list[float]]:
    if len(left) != len(right):
        raise ValueError(f"pairs need two sides of equal length, got {len(left)} and {len(right)}")
    if not left:
        raise ValueError("no pairs to compare; measure each variant at least once")
    sides = [float(value) for value in left], [float(value) for value in right]
    for value in (*sides[0], *sides[1]):
        if not math.isfinite(value):
            raise ValueError(f"pairs need finite values, got {value!r}; leave that pair out and say so")
    return sides


def _bootstrap(values: list[float], level: float, draws: int, seed: int) -> Interval:
    if not 0 < level < 1:
        raise ValueError(f"level={level!r} is not between 0 and 1; 0.95 is usual")
    if draws < 1:
        raise ValueError(f"draws={draws!r} is not positive; 4000 is usual")
    count = len(values)
    attainable = min(level, 1 - 2.0 ** (1 - count))
    estimate = statistics.median(values)
    if count < 3:
        return Interval(estimate, min(values), max(values), attainable, count)
    generator = torch.Generator(device="cpu").manual_seed(seed)
    picks = torch.randint(count, (draws, count), generator=generator, device="cpu")
    ordered = torch.tensor(values, dtype=torch.float64, device="cpu")[picks].sort(dim=1).values
    medians = (ordered[:, (count - 1) // 2] + ordered[:, count // 2]) / 2
    tail = (1 - level) / 2
    low, high = medians.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64, device="cpu")).tolist()
    return Interval(estimate, low, high, attainable, count)


def schedule(names: Iterable[str], rounds: int, seed: int = 0) -> list[list[str]]:
    """The order in which to run variants: every round runs each once, and every second round reverses the one before.

    The reversal (ABBA) cancels a linear drift within each pair of rounds; the random order of the others keeps a
    periodic disturbance from hitting one variant.

    Raises:
        ValueError: no names, a repeated name, or fewer than one round.

    Example::

        >>> first, second = schedule(["a", "b", "c"], rounds=2)
        >>> sorted(first), second == first[::-1]
        (['a', 'b', 'c'], True)
    """
    variants = list(names)
    if not variants or len(set(variants)) != len(variants):
        raise ValueError(f"a schedule needs one or more different names, got {variants}")
    if rounds < 1:
        raise ValueError(f"rounds={rounds!r} is not positive; five or more give a useful interval")
    generator = random.Random(seed)
    order: list[list[str]] = []
    for index in range(rounds):
        order.append(order[-1][::-1] if index % 2 else generator.sample(variants, len(variants)))
    return order


def interleave(
    variants: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    seed: int = 0,
    warmup: int = 0,
) -> dict[str, list[float]]:
    """Seconds of each variant in each round, run in the order of `schedule`, so that equal indices form a pair.

    A variant must finish its work before it returns (on a GPU: synchronise). ``warmup`` rounds are run and not timed.

    Raises:
        ValueError: no variants, fewer than one round, or a negative ``warmup``.

    Example::

        >>> ticks = iter([0.0, 1.0, 1.0, 3.0])
        >>> sorted(interleave({"a": lambda: None, "b": lambda: None}, rounds=1, clock=lambda: next(ticks)).values())
        [[1.0], [2.0]]
    """
    order = schedule(variants, rounds, seed)
    if warmup < 0:
        raise ValueError(f"warmup={warmup!r} is negative; 0 runs none")
    for _ in range(warmup):
        for name in order[0]:
            variants[name]()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for names in order:
        for name in names:
            start = clock()
            variants[name]()
            seconds[name].append(clock() - start)
    return seconds


def resolution(first: Sequence[float], second: Sequence[float], *, level: float = 0.95, seed: int = 0) -> Interval:
    """What a comparison of equals shows here: the ratio of two interleaved sample lists of the same variant.

    A gain smaller than ``resolution(...).reach()`` is not resolved by this machine and this number of pairs.

    Raises:
        ValueError: as `paired_ratio`.

    Example::

        >>> round(resolution([1.0, 1.1, 1.0], [1.0, 1.0, 1.1]).reach(), 2)
        0.1
    """
    return paired_ratio(first, second, level=level, seed=seed)


def outliers(samples: Sequence[float], cutoff: float = 14.826) -> list[int]:
    """Indices whose distance from the median exceeds ``cutoff`` median absolute deviations (14.826: ten sigmas).

    They are reported, never removed. More than half of the samples equal: every other value is an outlier.

    Source: hyperfine, ``src/outlier_detection.rs``, after Iglewicz and Hoaglin (1993).

    Example::

        >>> outliers([0.5, 0.30, 0.29, 0.31, 0.30])
        [0]
    """
    if not samples:
        return []
    middle = statistics.median(samples)
    distances = [abs(sample - middle) for sample in samples]
    spread = statistics.median(distances)
    return [index for index, distance in enumerate(distances) if distance > cutoff * spread]
