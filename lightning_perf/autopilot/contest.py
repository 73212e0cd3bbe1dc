"""The course of a race: a probe of the user's own optimizer, then rung after rung, each run kept as soon as it ends."""

from __future__ import annotations

import dataclasses
import logging
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from lightning_perf import measuring
from lightning_perf.autopilot import halving
from lightning_perf.autopilot.candidates import OWN, Candidate, default_candidates
from lightning_perf.autopilot.compare import BadFactory
from lightning_perf.autopilot.direction import direction_of
from lightning_perf.autopilot.halving import Budget, Cost, Pace
from lightning_perf.autopilot.race_files import RaceFiles
from lightning_perf.report import Run

_PROBE = "probe"
_PROBE_PART = 1 / 20
_EARLY_EVALUATIONS = 4
_FINAL_EVALUATIONS = 20

_log = logging.getLogger(__name__)


class Trial(Protocol):
    """One run of one candidate."""

    def __call__(self, candidate: Candidate, seed: int, position: int, pace: Pace, metric: str | None) -> Run: ...


@dataclass
class Rung:
    """What was planned and what has run in one rung."""

    plan: dict[str, Pace]
    runs: list[Run] = field(default_factory=list)


class Contest:
    """Successive halving over candidates through ``trial``; what is known at any time stands in the attributes.

    Args:
        trial: runs one candidate.
        files: where runs are kept; plans follow from the runs before, so that a resumed race makes the same ones.
        budget: for the whole race, or for a finalist.
        given: the candidates; None for the defaults.
        seeds: runs of each finalist.
        seed: the first of them, and the seed of every earlier run.
        metric: the metric's name; None takes the one that the probe finds.
        mode: ``max`` or ``min``; None takes what monitors the metric in the probe, else tells it from the name.
        tell: called before each run with the number of runs done, the number in all, and what comes.
        clock: seconds; injected by tests.
    """

    def __init__(
        self,
        trial: Trial,
        files: RaceFiles,
        budget: Budget,
        given: Sequence[Candidate] | None,
        *,
        seeds: int,
        seed: int = 0,
        metric: str | None = None,
        mode: str | None = None,
        tell: Callable[[int, int, str], None] = lambda done, total, text: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._trial, self._files, self._tell, self._clock = trial, files, tell, clock
        self.budget, self._given, self.seeds, self.seed = budget, given, seeds, seed
        self.metric, self._mode = metric, mode
        self.direction = direction_of(metric, mode)
        self.probe: Run | None = None
        self.candidates: list[Candidate] = []
        self.left_out: list[Candidate] = []
        self.rungs: list[Rung] = []
        self.sizes: list[int] = []
        self.over = False
        self.spent = 0.0
        self._done = 0
        self._latest: dict[str, Run] = {}

    def go(self) -> None:
        """Run the whole race; an exception of a candidate is its verdict.

        Raises:
            RuntimeError: the user's own optimizer cannot train.
            ValueError: no metric, or a budget too small for a single candidate.
        """
        self.probe = self._run_probe()
        self.candidates = list(self._given or default_candidates(self.probe.value("lr_share")))
        self.sizes = self._sizes()
        self.candidates, self.left_out = self.candidates[: self.sizes[0]], self.candidates[self.sizes[0] :]
        going = list(self.candidates)
        for index, size in enumerate(self.sizes):
            if index:
                going = self._best(going, size)
            if not going:
                break
            self._run_rung(index, [OWN, *going])
        self.over = True

    @property
    def mode(self) -> str:
        """``max`` or ``min``."""
        return self.direction.mode

    @property
    def is_final(self) -> bool:
        """Whether the last rung has begun."""
        return bool(self.sizes) and len(self.rungs) == len(self.sizes)

    def _run_probe(self) -> Run:
        seconds = None if self.budget.seconds is None else self.budget.seconds * _PROBE_PART
        steps = min(halving.FEWEST_STEPS, self.budget.steps or halving.FEWEST_STEPS)
        self._tell(0, 1, "measuring a step")
        run = self._one(_PROBE, OWN, self.seed, Pace(steps, 1, seconds))
        if run.error is not None and not run.error.startswith("diverged"):
            raise RuntimeError(f"the {OWN.name} failed within {steps} steps: {run.error}")
        if self.metric is None:
            self.metric = next((name for name in run.curves if name != "loss"), None)
        self.direction = direction_of(self.metric, self._mode, run.monitored)
        if self.metric is None or not run.curves.get(self.metric):
            why = run.missing.get("final_metric", "no validation ran")
            raise ValueError(f"metric={self.metric!r} cannot be raced for: {why}; name a metric that validation logs.")
        return run

    def _sizes(self) -> list[int]:
        """Candidates per rung; without time for all of them, the last ones are left out."""
        assert self.probe is not None
        if self.budget.seconds is None:
            return halving.sizes_for_steps(len(self.candidates), self._finalist_steps())
        cost, overhead = cost_of(self.probe), overhead_of(self.probe)
        left = self.budget.seconds - (self.probe.value("wall_seconds") or 0.0)
        found = halving.affordable_sizes(len(self.candidates), left, self.seeds, cost, overhead)
        if not found:
            needed = halving.seconds_needed([1], self.seeds, cost, overhead) + self.budget.seconds - left
            raise ValueError(
                f"budget of {self.budget.seconds:g} s is too small for one candidate: a step takes {cost.step:.3g} s, a "
                f"validation {cost.validation:.3g} s, starting a run {overhead:.3g} s; give at least {math.ceil(needed)} s, "
                "fewer seeds, or a smaller limit_val_batches."
            )
        return found

    def _finalist_steps(self) -> float:
        """Steps of a finalist where the budget says so; never more than the user's own training has."""
        assert self.probe is not None
        return min(self.budget.steps or math.inf, self.probe.value("configured_steps") or math.inf)

    def _best(self, going: Sequence[Candidate], keep: int) -> list[Candidate]:
        runs = {run.variant: run for run in self.rungs[-1].runs}
        scores = {one.name: score_of(runs[one.name]) for one in going}
        chosen = halving.survivors(scores, keep, self.mode)
        return [one for one in going if one.name in chosen]

    def _run_rung(self, index: int, entries: Sequence[Candidate]) -> None:
        last = index == len(self.sizes) - 1
        label = f"rung{index + 1}"
        plan = self._plan(index, entries)
        rung = Rung(plan)
        self.rungs.append(rung)
        by_name = {one.name: one for one in entries}
        order = measuring.schedule(by_name, self.seeds, self.seed) if last else [list(by_name)]
        total = sum(halving.runs_per_rung(self.sizes, self.seeds)) + 1
        for offset, names in enumerate(order):
            for name in names:
                self._tell(self._done, total, f"rung {index + 1} of {len(self.sizes)}: {name}")
                rung.runs.append(self._one(label, by_name[name], self.seed + offset, plan[name]))

    def _plan(self, index: int, entries: Sequence[Candidate]) -> dict[str, Pace]:
        assert self.probe is not None
        parts = halving.shares(len(self.sizes))[index:]
        evaluations = _FINAL_EVALUATIONS if index == len(self.sizes) - 1 else _EARLY_EVALUATIONS
        if self.budget.steps is not None:
            pace = halving.pace_of(self._finalist_steps() * parts[0], evaluations)
            return {one.name: pace for one in entries}
        assert self.budget.seconds is not None
        runs = halving.runs_per_rung(self.sizes, self.seeds)[index:]
        finalist = halving.finalist_seconds(self.budget.seconds - self.spent, runs, parts, overhead_of(self.probe))
        configured = self._finalist_steps()
        most = min(configured, max(halving.FEWEST_STEPS, configured * parts[0]))
        own = cost_of(self.probe)
        seconds = max(finalist * parts[0], halving.FEWEST_STEPS * own.step + own.validation)
        costs = {one.name: cost_of(self._latest[one.name]) if one.name in self._latest else own for one in entries}
        return {name: halving.pace_within(seconds, cost, evaluations, most) for name, cost in costs.items()}

    def _one(self, rung: str, candidate: Candidate, seed: int, pace: Pace) -> Run:
        run = self._files.run(rung, candidate, seed)
        if run is None:
            start = self._clock()
            try:
                run = self._trial(candidate, seed, self._done, pace, self.metric)
            except BadFactory:
                raise
            except Exception as error:
                _log.info("%s failed with seed %d", candidate.name, seed, exc_info=True)
                run = Run(candidate.name, seed, self._done, error=f"{type(error).__name__}: {error}")
            run = dataclasses.replace(run, quantities={**run.quantities, "wall_seconds": self._clock() - start})
            self._files.keep_run(rung, candidate, run)
        self._done += 1
        self.spent += run.value("wall_seconds") or 0.0
        if run.value("steps"):
            self._latest[candidate.name] = run
        return run


def score_of(run: Run) -> float | None:
    """The final metric of a run that went well."""
    return run.value("final_metric") if run.error is None else None


def cost_of(run: Run) -> Cost:
    """Seconds of a step and of a validation.

    Of the mean over the run, which holds the start of loader workers, and the median batch the smaller one counts.
    """
    steps = run.value("steps") or 1.0
    checks = run.value("validations") or 1.0
    in_validation = run.value("validation_seconds") or 0.0
    mean = ((run.value("train_seconds") or 0.0) - in_validation) / steps
    batches = run.samples.get("batch_seconds", ())
    median = statistics.median(batches) * max(1, round(len(batches) / steps)) if batches else mean
    return Cost(max(1e-6, min(mean, median)), in_validation / checks)


def overhead_of(run: Run) -> float:
    """Seconds of a run beside its steps and validations: imports, data, set-up, the sanity check."""
    cost = cost_of(run)
    training = cost.step * (run.value("steps") or 0.0) + (run.value("validation_seconds") or 0.0)
    return max(0.0, (run.value("wall_seconds") or 0.0) - training)
