"""Successive halving in numbers: what a budget says, how many candidates meet for how long, who goes on.

Source: Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization",
https://arxiv.org/abs/1502.07943. Deviations: lengths are seconds shared out from the last rung backwards, the last rung is
run with several seeds, and one entry (the user's own) is in every rung.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

FACTOR = 3
FINALISTS = 3
#: A rung of fewer steps than this tells nothing.
FEWEST_STEPS = 20
#: At most so large a part of a run goes into validation, unless a single validation takes more.
_VALIDATION_SHARE = 0.25
_UNITS = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True)
class Budget:
    """Either seconds for the whole race, or optimizer steps of a finalist; the other one is None."""

    seconds: float | None = None
    steps: int | None = None


def parse_budget(budget: str | float) -> Budget:
    """A number of seconds, ``"90s"``, ``"10m"``, ``"1h"``, ``"1h30m"``; or ``"500 steps"``.

    Raises:
        ValueError: anything else, or nothing above zero.

    Example::

        >>> parse_budget("1h30m"), parse_budget("500 steps")
        (Budget(seconds=5400.0, steps=None), Budget(seconds=None, steps=500))
    """
    text = str(budget).strip().lower().replace(" ", "")
    steps = re.fullmatch(r"(\d+)steps?", text)
    found = Budget(steps=int(steps[1])) if steps else Budget(seconds=_seconds(text))
    amount = found.seconds if found.steps is None else found.steps
    if isinstance(budget, bool) or amount is None or not 0 < amount < math.inf:
        raise ValueError(
            f"budget={budget!r} is neither a time for the whole race, such as '10m', '90s', '1h30m' or a number of "
            "seconds, nor a number of steps for each finalist, such as '500 steps'."
        )
    return found


def _seconds(text: str) -> float | None:
    if re.fullmatch(r"(\d+(\.\d*)?[hms])+", text):
        return sum(float(number) * _UNITS[unit] for number, unit in re.findall(r"([\d.]+)([hms])", text))
    return float(text) if re.fullmatch(r"\d+(\.\d*)?", text) else None


def usual_cuts(candidates: int) -> int:
    """How often a field is cut to about a third until the finalists are left.

    Example::

        >>> usual_cuts(18), usual_cuts(9), usual_cuts(2)
        (2, 1, 0)
    """
    return 0 if candidates <= FINALISTS else max(1, round(math.log(candidates / FINALISTS, FACTOR)))


def sizes(candidates: int, cuts: int | None = None) -> list[int]:
    """How many candidates run in each rung, from all to the finalists, in ``cuts`` even steps (default: the usual number).

    Example::

        >>> sizes(18), sizes(18, cuts=1), sizes(2)
        ([18, 7, 3], [18, 3], [2])
    """
    cuts = usual_cuts(candidates) if cuts is None else min(cuts, usual_cuts(candidates))
    return [round(candidates * (min(1.0, FINALISTS / candidates)) ** (cut / max(1, cuts))) for cut in range(cuts + 1)]


def sizes_for_steps(candidates: int, steps: float) -> list[int]:
    """The rungs where a finalist trains ``steps`` steps: as many as leave the first one ``FEWEST_STEPS``, two at least.

    Example::

        >>> sizes_for_steps(18, 500), sizes_for_steps(18, 60)
        ([18, 7, 3], [18, 3])
    """
    cuts = usual_cuts(candidates)
    while cuts > 1 and steps / FACTOR**cuts < FEWEST_STEPS:
        cuts -= 1
    return sizes(candidates, cuts)


def shares(rungs: int) -> list[float]:
    """The length of each rung's runs as a part of a finalist's.

    Example::

        >>> shares(3)
        [0.1111111111111111, 0.3333333333333333, 1.0]
    """
    return [1 / FACTOR ** (rungs - 1 - rung) for rung in range(rungs)]


def runs_per_rung(field: Sequence[int], seeds: int) -> list[int]:
    """Runs in each rung: its candidates and the user's own, in the last rung once per seed.

    Example::

        >>> runs_per_rung([9, 3], seeds=3)
        [10, 12]
    """
    return [(count + 1) * (seeds if rung == len(field) - 1 else 1) for rung, count in enumerate(field)]


def finalist_seconds(remaining: float, runs: Sequence[int], parts: Sequence[float], overhead: float) -> float:
    """Seconds of training for a finalist, such that all ``runs`` still to come fit into ``remaining`` seconds.

    Every run costs ``overhead`` seconds beside its training. Zero where nothing is left.

    Example::

        >>> finalist_seconds(160.0, runs=[10, 12], parts=[0.5, 1.0], overhead=1.0)
        8.117647058823529
    """
    left = remaining - overhead * sum(runs)
    return max(0.0, left / sum(count * part for count, part in zip(runs, parts, strict=True)))


@dataclass(frozen=True)
class Pace:
    """How long one run is: optimizer steps, validations among them, and seconds after which it is stopped."""

    steps: int
    evaluations: int
    seconds: float | None = None


@dataclass(frozen=True)
class Cost:
    """Seconds of one optimizer step and of one validation."""

    step: float
    validation: float


def pace_within(seconds: float, cost: Cost, evaluations: int, most_steps: float = math.inf) -> Pace:
    """The run that takes ``seconds``: validations take at most a quarter of it, and there is at least one.

    Steps are a multiple of the validations, so that the last validation sees the last step; a run that takes twice its
    seconds is stopped.

    Example::

        >>> pace_within(10.0, Cost(step=0.1, validation=0.5), evaluations=4)
        Pace(steps=80, evaluations=4, seconds=20.0)
    """
    affordable = int(_VALIDATION_SHARE * seconds / cost.validation) if cost.validation > 0 else evaluations
    checks = max(1, min(evaluations, affordable))
    steps = int(min(most_steps, (seconds - checks * cost.validation) / cost.step))
    return _even(max(1, steps), checks, 2 * seconds)


def pace_of(steps: float, evaluations: int) -> Pace:
    """The run of so many steps, with no limit in seconds.

    Example::

        >>> pace_of(105, 10)
        Pace(steps=100, evaluations=10, seconds=None)
    """
    return _even(max(1, int(steps)), evaluations, None)


def _even(steps: int, evaluations: int, seconds: float | None) -> Pace:
    checks = min(steps, evaluations)
    return Pace(steps // checks * checks, checks, seconds)


def affordable_sizes(candidates: int, seconds: float, seeds: int, cost: Cost, overhead: float) -> list[int]:
    """The rungs of the largest field, up to ``candidates``, for which ``seconds`` last; empty if they do not for one.

    The first rung needs ``FEWEST_STEPS`` steps and a validation. Rather than leave candidates out, rungs are.

    Example::

        >>> affordable_sizes(18, seconds=300.0, seeds=3, cost=Cost(0.1, 0.5), overhead=5.0)
        [18, 3]
        >>> affordable_sizes(18, seconds=200.0, seeds=3, cost=Cost(0.1, 0.5), overhead=5.0)
        [5, 3]
    """
    for count in range(candidates, 0, -1):
        for cuts in range(usual_cuts(count), min(1, usual_cuts(count)) - 1, -1):
            field = sizes(count, cuts)
            if seconds_needed(field, seeds, cost, overhead) <= seconds:
                return field
    return []


def seconds_needed(field: Sequence[int], seeds: int, cost: Cost, overhead: float) -> float:
    """Seconds of a race whose first rung gives every run ``FEWEST_STEPS`` steps and a validation.

    Example::

        >>> seconds_needed([1], seeds=3, cost=Cost(0.1, 0.5), overhead=5.0)
        45.0
    """
    runs, parts = runs_per_rung(field, seeds), shares(len(field))
    finalist = (FEWEST_STEPS * cost.step + cost.validation) / parts[0]
    return overhead * sum(runs) + finalist * sum(count * part for count, part in zip(runs, parts, strict=True))


def survivors(scores: Mapping[str, float | None], keep: int, mode: str) -> list[str]:
    """The ``keep`` best names, best first; what has no finite score is out, equals keep their order.

    Example::

        >>> survivors({"a": 0.5, "b": None, "c": 0.7, "d": 0.6}, keep=2, mode="max")
        ['c', 'd']
    """
    sign = -1 if mode == "max" else 1
    finite = {name: score for name, score in scores.items() if score is not None and math.isfinite(score)}
    return sorted(finite, key=lambda name: sign * finite[name])[:keep]


def seconds_to(curve: Sequence[tuple[float, float]], target: float, mode: str) -> float | None:
    """The first second at which a curve of ``(seconds, value)`` has reached ``target``.

    Example::

        >>> seconds_to([(1.0, 0.5), (2.0, 0.8), (3.0, 0.7)], target=0.7, mode="max")
        2.0
    """
    sign = 1 if mode == "max" else -1
    return next((at for at, value in curve if sign * value >= sign * target), None)
