"""What a race has shown: the picks with their intervals, the standings, and the report around both."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from lightning_perf.autopilot import halving
from lightning_perf.autopilot.candidates import BASELINE, Candidate, python_line
from lightning_perf.autopilot.compare import quality_of
from lightning_perf.autopilot.contest import Contest, Rung, score_of
from lightning_perf.measuring import Interval
from lightning_perf.report import (
    PEAK_MEMORY,
    SAMPLES_PER_SECOND,
    SECONDS_TO_TARGET,
    TRAIN_SECONDS,
    Quantity,
    Report,
    Run,
    Section,
)
from lightning_perf.report.rows import comparison_text, verdict

_SHOWN_OF_AN_EARLY_RUNG = 3


@dataclass(frozen=True)
class Pick:
    """The best by one quantity; ``resolved`` says whether its interval tells it from the baseline."""

    name: str
    interval: Interval | None
    resolved: bool
    sentence: str


def pick_by_metric(report: Report) -> Pick:
    """The best median of the final metric."""
    quantity = report.quantity("final_metric")
    best = _best(report, "final_metric", quantity.better == "higher", lambda values: bool(values))
    words = f"By {quantity.label}"
    if best in (None, report.baseline):
        return Pick(report.baseline, None, False, f"{words}: no candidate did better than {report.baseline}.")
    return _judged(report, quantity, best, words)


def pick_by_time(report: Report) -> Pick:
    """The smallest median of the time to the target, among those that reached it with every seed.

    Whoever reaches the target sooner but certainly ends worse is not picked.
    """
    quantity = report.quantity("seconds_to_target")
    words = f"By {quantity.label}"

    def every_seed(values: Sequence[float | None]) -> bool:
        return bool(values) and None not in values

    worse = {name for name in report.variants if _verdict(report, "final_metric", name) == "worse"}
    best = _best(report, "seconds_to_target", False, every_seed, without=worse)
    if best in (None, report.baseline):
        why = "no candidate got there sooner than" if best else "nothing reached it with every seed, not even"
        return Pick(report.baseline, None, False, f"{words}: {why} {report.baseline}.")
    return _judged(report, quantity, best, words)


def _best(
    report: Report,
    key: str,
    higher: bool,
    eligible: Callable[[Sequence[float | None]], bool],
    without: Collection[str] = (),
) -> str | None:
    medians: dict[str, float] = {}
    for name in report.variants:
        values = report.values(key, name)
        healthy = all(run.error is None for run in report.runs_of(name))
        known = [value for value in values if value is not None]
        if known and healthy and name not in without and eligible(values):
            medians[name] = statistics.median(known)
    return next(iter(halving.survivors(medians, 1, "max" if higher else "min")), None)


def _judged(report: Report, quantity: Quantity, name: str, words: str) -> Pick:
    interval = report.comparison(quantity.key, name)
    known = [value for value in report.values(quantity.key, name) if value is not None]
    shown = quantity.text(statistics.median(known))
    if interval is None:
        reasons = "; ".join(dict.fromkeys(report.left_out(quantity.key, name).values()))
        return Pick(name, None, False, f"{words}: {name}, {shown}; not compared with {report.baseline} ({reasons}).")
    text = f"{comparison_text(quantity, interval)} against {report.baseline}"
    if not _seeds_matter(report):
        sentence = f"{words}: {name} came first with {shown}, {text}; how much of it is noise is not known."
        return Pick(name, interval, False, sentence)
    if verdict(report, quantity, interval) == "better":
        return Pick(name, interval, True, f"{words}: {name}, {shown}, {text}.")
    if (interval.pairs or 0) < 3:
        sentence = f"{words}: {name} came first with {shown}, {text}; to tell that from noise takes 3 seeds or more."
    else:
        sentence = f"{words}: no difference. {name} came first with {shown}, {text}, which noise explains."
    return Pick(name, interval, False, sentence)


def _seeds_matter(report: Report) -> bool:
    """Whether two seeds of the baseline differ; a module that seeds itself gives one run again and again."""
    losses = [[value for _, value in run.curves.get("loss", ())] for run in report.runs_of(report.baseline)]
    return len(losses) < 2 or any(one != losses[0] for one in losses[1:]) or not losses[0]


def _verdict(report: Report, key: str, name: str) -> str | None:
    interval = report.comparison(key, name)
    return None if interval is None else verdict(report, report.quantity(key), interval)


def winner(report: Report) -> str:
    """Resolved by time to the target, else resolved by the final metric, else the baseline."""
    picks = (pick_by_time(report), pick_by_metric(report))
    return next((pick.name for pick in picks if pick.resolved), report.baseline)


def race_report(
    contest: Contest, *, title: str, target: float | None, notes: Sequence[str], interrupted: bool
) -> Report:
    """Table of the finalists, picks, standings."""
    runs, rung = _shown(contest)
    goal = target if target is not None else _own_end(runs, contest.mode)
    runs = [_with_time_to(run, contest.metric, goal, contest.mode) for run in runs]
    label = f"time to {contest.metric}" + ("" if goal is None else f" {goal:.4g}")
    quantities = [
        quality_of(contest.metric, contest.mode),
        dataclasses.replace(SECONDS_TO_TARGET, label=label),
        SAMPLES_PER_SECOND,
        TRAIN_SECONDS,
        PEAK_MEMORY,
    ]
    said = [*_how(contest, rung, target, goal), *notes]
    if interrupted:
        said.insert(0, f"Interrupted after {contest.spent:.0f} s of runs; what was known then is shown.")
    report = Report(title=title, baseline=BASELINE, runs=runs, quantities=quantities, notes=said)
    if not _seeds_matter(report):
        alike = (
            "Every seed gave the same run: the module, or what builds it, seeds itself. The intervals hold no noise."
        )
        report = dataclasses.replace(report, notes=(alike, *report.notes))
    return dataclasses.replace(report, sections=(_picks(report, contest), _standings(contest)))


def _shown(contest: Contest) -> tuple[list[Run], Rung | None]:
    """The runs of the last rung that can be compared, and that rung; of an early one only the best."""
    for rung in reversed(contest.rungs):
        names = dict.fromkeys(run.variant for run in rung.runs)
        if BASELINE in names and len(names) > 1:
            if contest.is_final and rung is contest.rungs[-1]:
                return rung.runs, rung
            scores = {run.variant: score_of(run) for run in rung.runs if run.variant != BASELINE}
            best = [BASELINE, *halving.survivors(scores, _SHOWN_OF_AN_EARLY_RUNG, contest.mode)]
            return [run for run in rung.runs if run.variant in best], rung
    assert contest.probe is not None
    return [contest.probe], None


def _own_end(runs: Sequence[Run], mode: str) -> float | None:
    """The worst final metric of the user's own runs: every one of them has reached it."""
    ends = [end for run in runs if run.variant == BASELINE and (end := score_of(run)) is not None]
    return None if not ends else min(ends) if mode == "max" else max(ends)


def _with_time_to(run: Run, metric: str | None, target: float | None, mode: str) -> Run:
    reached = None if target is None else halving.seconds_to(run.curves.get(metric or "", ()), target, mode)
    missing = dict(run.missing)
    if reached is None and run.error is None:
        missing["seconds_to_target"] = "there is no target" if target is None else f"{target:.4g} was not reached"
    # What a factory says is the same in every run, and the standings tell the rest.
    notes = tuple(note for note in run.notes if note.startswith("stopped"))
    quantities = {**run.quantities, "seconds_to_target": reached}
    return dataclasses.replace(run, quantities=quantities, missing=missing, notes=notes)


def _how(contest: Contest, rung: Rung | None, target: float | None, goal: float | None) -> list[str]:
    """What a reader must know about this race."""
    assert contest.probe is not None
    found = [f"Metric: {contest.metric}; {contest.direction}."]
    if target is None and goal is not None:
        found.append(f"The target {goal:.4g} is the worst that {BASELINE} ended with over its seeds.")
    if rung is not None and BASELINE in rung.plan:
        steps, configured = rung.plan[BASELINE].steps, contest.probe.value("configured_steps")
        part = "" if not configured else f", {steps / configured:.0%} of the configured {configured:.0f}"
        found.append(f"{BASELINE} trained {steps} steps in these runs{part}; the order of longer trainings may differ.")
    found.append(
        "A schedule with an end (linear, cosine, one cycle) ends with its rung: every run was one whole training of that "
        "rung's length. A schedule of the module's own does so only if it asks trainer.estimated_stepping_batches."
    )
    if contest.budget.seconds is not None:
        found.append("The first rung gives every candidate the same steps, later rungs the same seconds.")
    if contest.left_out:
        names = ", ".join(one.name for one in contest.left_out)
        found.append(f"Left out, for want of budget: {names}.")
    return found


def _picks(report: Report, contest: Contest) -> Section:
    picks = [pick_by_time(report), pick_by_metric(report)]
    if not contest.over:
        sentences = ["The race is not over: there is no pick yet."]
    elif not contest.is_final:
        sentences = [f"No candidate is left: all failed or diverged. Keep {BASELINE}."]
    else:
        best = winner(report)
        lines = {one.name: python_line(one) for one in contest.candidates}
        keep = f"Keep {BASELINE}: nothing was shown to be better."
        sentences = [pick.sentence for pick in picks]
        sentences.append(keep if best == BASELINE else f"Pick: {best}: {lines[best]}")
    return Section("Picks", sentences=sentences)


def _standings(contest: Contest) -> Section:
    """One row per candidate: how far it came, and its metric there."""
    quantity = quality_of(contest.metric, contest.mode)
    headers = ["candidate", "verdict", *(f"rung {index + 1}" for index in range(len(contest.rungs)))]
    own = Candidate(BASELINE, None)
    rows = [[one.name, _fate(contest, one), *_scores(contest, one, quantity)] for one in (own, *contest.candidates)]
    sentence = f"Each rung: {quantity.label} after so many steps; medians over the seeds of the last rung."
    return Section("Standings", sentences=[sentence], headers=headers, rows=rows)


def _scores(contest: Contest, candidate: Candidate, quantity: Quantity) -> list[str]:
    cells = []
    for rung in contest.rungs:
        runs = [run for run in rung.runs if run.variant == candidate.name]
        scores = [score for run in runs if (score := score_of(run)) is not None]
        steps = next((run.value("steps") for run in runs), None)
        cells.append(f"{quantity.text(statistics.median(scores))} ({steps or 0:.0f})" if scores else "-")
    return cells


def _fate(contest: Contest, candidate: Candidate) -> str:
    indexed = [(index, run) for index, rung in enumerate(contest.rungs) for run in rung.runs]
    runs = [(index, run) for index, run in indexed if run.variant == candidate.name]
    errors = [run.error for _, run in runs if run.error is not None]
    if errors:
        return (errors[0].strip().splitlines() or ["failed"])[0]
    if candidate.name == BASELINE:
        return "baseline"
    if not runs:
        return "not reached"
    last = runs[-1][0]
    if contest.is_final and last == len(contest.sizes) - 1:
        return "finalist"
    if last == len(contest.rungs) - 1:
        return "in the race"
    return f"out after rung {last + 1} of {len(contest.sizes)}"
