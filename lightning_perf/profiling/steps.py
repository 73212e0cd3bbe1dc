"""Steps of a training: how long, how even, and which of them stalled."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

_KEPT = 65_536
_STALL = 3.0
_MOST_STALLS = 10
_RECENT = 64


@dataclass(frozen=True)
class Stall:
    """One step that took more than three times as long as the steps around it, and the phase that grew most."""

    step: int
    seconds: float
    typical: float
    phase: str


class StepStatistics:
    """Counts steps, samples and tokens, keeps the last 65,536 step times, and notices stalls.

    Memory is bounded whatever the length of the run.

    Example::

        >>> steps = StepStatistics()
        >>> for seconds in (0.125, 0.125, 0.125, 0.625):
        ...     _ = steps.add([seconds])
        >>> steps.add_samples(4, (8, None))
        >>> steps.samples_per_second(), steps.percentile(0.5)
        (32.0, 0.125)
    """

    def __init__(self) -> None:
        self.count = 0
        self.seconds = 0.0
        self.samples: int | None = 0
        self.tokens: int | None = 0
        self.stalls: list[Stall] = []
        self._times: deque[float] = deque(maxlen=_KEPT)
        self._typical = self._limit = float("inf")

    def add(self, seconds: Sequence[float]) -> list[tuple[int, float]]:
        """Count some steps, at most 64; returns number and seconds of those that stalled.

        A step stalls that takes three times the median of 64 earlier ones; the median is taken anew once in 64 steps.
        """
        before, self.count = self.count, self.count + len(seconds)
        self._times.extend(seconds)
        self.seconds += sum(seconds)
        stalled = []
        if max(seconds, default=0.0) > self._limit:
            stalled = [(before + at, one) for at, one in enumerate(seconds, 1) if one > self._limit]
        if self.count // _RECENT > before // _RECENT:
            self._typical = sorted(islice(reversed(self._times), _RECENT))[-_RECENT // 2]
            self._limit = _STALL * self._typical
        return stalled

    def add_samples(self, batches: int, size: tuple[int | None, int | None]) -> None:
        """Count the samples and the tokens of so many batches of that size; one of unknown size makes the rate unknown."""
        if not batches:
            return
        samples, tokens = size
        if self.samples is not None:
            self.samples = None if samples is None else self.samples + batches * samples
        if self.tokens is not None:
            self.tokens = None if tokens is None else self.tokens + batches * tokens

    def stalled(
        self,
        step: int,
        seconds: float,
        before: Sequence[float],
        after: Sequence[float],
        names: Sequence[str],
        steps: int = 1,
    ) -> None:
        """Keep a stall with the phase that took most of it; the ten longest are kept.

        Args:
            step: number of the step that stalled, from 1.
            seconds: that it took.
            before: seconds of every phase up to some step before.
            after: seconds of every phase now.
            names: of the phases.
            steps: from ``before`` to ``after``; all but the one that stalled are taken to have been usual ones.
        """
        share = max(steps - 1, 0) / max(self.count - 1, 1)
        known = [*before, *[0.0] * (len(after) - len(before))]
        grown = [b - a - share * a for a, b in zip(known, after, strict=True)]
        phase = names[max(range(len(grown)), key=grown.__getitem__)] if grown else "unknown"
        self.stalls.append(Stall(step, seconds, self._typical, phase))
        self.stalls.sort(key=lambda stall: -stall.seconds)
        del self.stalls[_MOST_STALLS:]

    def times(self) -> list[float]:
        """Step times in seconds: the last 65,536."""
        return list(self._times)

    def percentile(self, share: float) -> float | None:
        """The step time below which ``share`` of the steps lie; ``None`` without a step."""
        ordered = sorted(self._times)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None

    def samples_per_second(self) -> float | None:
        """Samples over the time of steps; ``None`` where the size of a batch is unknown."""
        return self.samples / self.seconds if self.samples and self.seconds else None

    def tokens_per_second(self) -> float | None:
        """Tokens over the time of steps; ``None`` where batches hold no token ids."""
        return self.tokens / self.seconds if self.tokens and self.seconds else None


def slowest_rank(own_seconds: Sequence[float], threshold: float = 1.05) -> int | None:
    """The rank that others wait for: most time outside the gradient exchange; ``None`` if they are within 5 %.

    Args:
        own_seconds: per rank, seconds per step that do not wait for other ranks (everything but the backward pass).
        threshold: how much longer than the median of the other ranks counts.

    Example::

        >>> slowest_rank([1.0, 1.0, 1.4]), slowest_rank([1.0, 1.01])
        (2, None)
    """
    if len(own_seconds) < 2:
        return None
    others = sorted(own_seconds)[: len(own_seconds) - 1]
    median = others[len(others) // 2]
    worst = max(range(len(own_seconds)), key=own_seconds.__getitem__)
    return worst if own_seconds[worst] > threshold * median else None


def shares(seconds: Mapping[str, float]) -> dict[str, float]:
    """Each phase's part of the whole.

    Example::

        >>> shares({"forward": 3.0, "backward": 1.0})
        {'forward': 0.75, 'backward': 0.25}
    """
    whole = sum(seconds.values())
    return {name: value / whole for name, value in seconds.items()} if whole > 0 else {}
