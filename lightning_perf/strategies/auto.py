"""Which preset ``perf_ddp_auto`` takes: how many trials, and the rule. Pure: seconds in, a choice out."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from lightning_perf.measuring import Interval, paired_ratio, resolution
from lightning_perf.strategies.presets import PLAIN

#: No preset is taken for a gain below this.
LEAST_GAIN = 0.05
#: All steps of all trials together.
MOST_STEPS = 60
#: Before a wrapper is timed: its first backward learns the order of gradients, its second step builds the buckets anew.
WARM_UP = 2
#: Rounds of ddp against a step without any exchange, which tell whether there is anything to gain.
BOUND_ROUNDS = 5
#: What else the trials take, in steps of a slow link.
_PROBE_STEPS = 4
_LEAST_ROUNDS = 5
#: Fewer rounds, where time runs out, show nothing.
DECIDING_ROUNDS = 3
#: Steps of ddp whose seconds are kept for what comes behind the last round: the choice, and another wrapper.
_LAST_STEPS = 3
#: Trials may take so long however short a step is.
_LEAST_SECONDS = 2.0
#: The name under which that step stands in the table.
NO_EXCHANGE = "no exchange"


def rounds_left(others: int) -> int:
    """Rounds of ddp, ddp again and ``others`` presets that fit into what the first trials leave of 60 steps.

    The link's probe and the making of wrappers count as four steps, which five rounds may take for themselves.

    Example::

        >>> rounds_left(3), rounds_left(5), rounds_left(1)
        (7, 5, 13)
    """
    left = MOST_STEPS - 2 * (WARM_UP + BOUND_ROUNDS) - WARM_UP * others
    return max((left - _PROBE_STEPS) // (others + 2), min(_LEAST_ROUNDS, left // (others + 2)))


class Budget:
    """Seconds that all trials together may take: those of 60 steps of ddp, and two where steps are shorter.

    Whatever trials do beside their steps is in it: the link's probe, copies, wrappers, questions to other processes, and
    candidates that are slower than ddp. It starts when it is made.

    Args:
        clock: seconds.

    Example::

        >>> now = iter([0.0, 50.0, 50.0, 58.0]).__next__
        >>> budget = Budget(now)
        >>> budget.step_takes([1.0, 0.9, 1.1])
        >>> budget.has(7.0), budget.has(7.1), budget.has(0.0)
        (True, False, False)
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock, self._begin, self.step = clock, clock(), 0.0

    def step_takes(self, seconds: Sequence[float]) -> None:
        """What steps of ddp have taken."""
        self.step = statistics.median(seconds)

    def has(self, seconds: float) -> bool:
        """Whether so much more fits in."""
        end = self._begin + max((MOST_STEPS - _LAST_STEPS) * self.step, _LEAST_SECONDS)
        return self._clock() + seconds <= end

    def rounds(self, most: int, first: float, anywhere: Callable[[bool], bool]) -> Iterator[int]:
        """Up to ``most`` rounds, as long as one more fits in that takes as long as the longest one so far.

        Args:
            most: rounds at most.
            first: seconds that the first one is expected to take.
            anywhere: the question to all processes, whose clocks differ, whether it is over for one of them.
        """
        longest = first
        for index in range(most):
            if anywhere(not self.has(longest)):
                return
            begin = self._clock()
            yield index
            longest = max(longest, self._clock() - begin)


@dataclass(frozen=True)
class Trial:
    """One line of the table: what was expected of a candidate, what it gained over ddp, and what became of it."""

    name: str
    verdict: str
    predicted: float | None = None
    ratio: Interval | None = None


@dataclass(frozen=True)
class Choice:
    """What ``perf_ddp_auto`` runs as, and why.

    Args:
        name: the preset, or ``"ddp"``.
        reason: one sentence.
        trials: a line for every candidate; empty where nothing was tried.
        steps: optimizer steps that the trials took.
        noise: how far from 1 the ratio of ddp to itself was.
    """

    name: str
    reason: str
    trials: tuple[Trial, ...] = ()
    steps: int = 0
    noise: float | None = None

    def __str__(self) -> str:
        if not self.trials:
            return f"{self.name} is used: {self.reason}."
        head = ("candidate", "predicted", "measured against ddp", "verdict")
        rows = [head, *(_cells(trial) for trial in self.trials)]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = ["  ".join([*(row[i].ljust(widths[i]) for i in range(3)), row[3]]) for row in rows]
        noise = "" if self.noise is None else f"; ddp against itself shows {self.noise:.0%} of noise"
        cost = f"{self.steps} steps on the first batch, of which nothing remains{noise}"
        return f"{self.name} is used: {self.reason}.\n  " + "\n  ".join([*lines, cost])


def _cells(trial: Trial) -> tuple[str, str, str, str]:
    predicted = "-" if trial.predicted is None else f"{trial.predicted * 1e3:.3g} ms"
    return trial.name, predicted, "-" if trial.ratio is None else str(trial.ratio), trial.verdict


def nothing_to_gain(plain: Sequence[float], no_exchange: Sequence[float]) -> Interval | None:
    """The gain that leaving out all exchange would bring, if even the upper end of it is below 5 %."""
    bound = paired_ratio(plain, no_exchange)
    return bound if bound.high < 1 + LEAST_GAIN else None


def decide(seconds: Mapping[str, Sequence[float]], again: Sequence[float]) -> tuple[str, dict[str, str], float]:
    """The preset to take, a verdict on each, and the noise.

    Candidates are gone through from the one that changes least. One takes the place of the one before it if its paired ratio
    to it is at least 5 % and more than ``ddp`` shows against itself, and if the interval of the ratio leaves out 1.

    Args:
        seconds: of every candidate in every round, ``"ddp"`` first; the same rounds for all.
        again: of ``ddp`` once more in every round.

    Example::

        >>> decide({"ddp": [2.0, 2.1, 2.0], "perf_ddp": [1.0, 1.1, 1.0]}, again=[2.0, 2.0, 2.1])[0]
        'perf_ddp'
    """
    chosen = PLAIN.name
    noise = resolution(seconds[chosen], again).reach()
    verdicts = {}
    for name in seconds:
        if name == PLAIN.name:
            continue
        gain = paired_ratio(seconds[chosen], seconds[name])
        beyond = "" if chosen == PLAIN.name else f" beyond {chosen}"
        if gain.estimate < 1 + LEAST_GAIN:
            verdicts[name] = f"gains less than {LEAST_GAIN:.0%}{beyond}"
        elif gain.estimate < 1 + noise or gain.low <= 1 or not gain.excludes(1.0):
            verdicts[name] = f"gains no more than the noise{beyond}"
        else:
            verdicts[name] = "faster"
            chosen = name
    verdicts[chosen] = "chosen"
    verdicts.setdefault(PLAIN.name, "the reference")
    return chosen, verdicts, noise
