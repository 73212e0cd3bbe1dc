"""The course of a race on scripted runs: who meets whom for how long, what is kept, what a report then says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lightning_perf.autopilot.candidates import BASELINE, Candidate, given_candidates
from lightning_perf.autopilot.contest import Contest, cost_of, overhead_of
from lightning_perf.autopilot.halving import Budget, Cost, Pace
from lightning_perf.autopilot.race_files import RaceFiles
from lightning_perf.autopilot.race_report import pick_by_metric, pick_by_time, race_report, winner
from lightning_perf.report import Report, Run

LRS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


class Script:
    """Runs whose final metric is the candidate's learning rate (0.55 for the user's own), without any training.

    Time passes on a clock of its own: ``step`` seconds a step, 0.5 s a validation, 2 s beside each run.
    """

    def __init__(self, step: float = 0.01, configured: float | None = None) -> None:
        self.now = 0.0
        self.step, self.configured = step, configured
        self.calls: list[tuple[str, int, Pace]] = []
        self.fail: dict[str, Exception] = {}
        self.diverge: set[str] = set()
        self.slow: dict[str, float] = {}
        self.interrupt_at: int | None = None

    def __call__(self, candidate: Candidate, seed: int, position: int, pace: Pace, metric: str | None) -> Run:
        if len(self.calls) == self.interrupt_at:
            raise KeyboardInterrupt
        self.calls.append((candidate.name, seed, pace))
        if candidate.name in self.fail:
            raise self.fail[candidate.name]
        step = self.step * self.slow.get(candidate.name, 1.0)
        validating = 0.5 * pace.evaluations
        training = pace.steps * step + validating
        self.now += training + 2.0
        score = 0.55 if candidate.arguments is None else candidate.arguments["lr"]
        score += 0.001 * seed
        points = [(training * part / 10, score * part / 10) for part in range(1, 11)]
        quantities: dict[str, float | None] = {
            "final_metric": score,
            "train_seconds": training,
            "validation_seconds": validating,
            "validations": pace.evaluations,
            "steps": pace.steps,
            "configured_steps": self.configured,
            "samples_per_second": 1 / step,
            "peak_memory": 1e6,
            "lr_share": 1.0,
        }
        error = "diverged: the loss was not finite at step 8" if candidate.name in self.diverge else None
        curves = {"loss": [(0.1, 1.0 + seed)], "val_acc": points}
        return Run(candidate.name, seed, position, quantities, curves, error=error)  # type: ignore[arg-type]


def contest(script: Script, budget: Budget, files: RaceFiles | None = None, **options: Any) -> Contest:
    files = files or RaceFiles(None, {}, resume=False)
    given = given_candidates([{"optimizer": "sgd", "lr": list(LRS)}])
    return Contest(script, files, budget, given, clock=lambda: script.now, **{"seeds": 3, **options})


def report_of(done: Contest, **options: Any) -> Report:
    return race_report(done, title="race", **{"target": None, "notes": [], "interrupted": False, **options})


def name(lr: float) -> str:
    return f"sgd lr={lr:g}"


def test_the_course_of_a_race_in_steps() -> None:
    """Nine candidates: all for 100 steps, the best three for 300, with three seeds; the user's own in both rungs."""
    script = Script()
    race = contest(script, Budget(steps=300))
    race.go()
    assert script.calls[0] == (BASELINE, 0, Pace(20, 1, None))
    assert script.calls[1:11] == [(one, 0, Pace(100, 4, None)) for one in (BASELINE, *map(name, LRS))]
    final = script.calls[11:]
    assert {(one, seed) for one, seed, _ in final} == {
        (one, seed) for one in (BASELINE, name(0.9), name(0.8), name(0.7)) for seed in (0, 1, 2)
    }
    assert {pace for *_, pace in final} == {Pace(300, 20, None)}
    assert [seed for _, seed, _ in final] == [0] * 4 + [1] * 4 + [2] * 4
    assert (race.metric, race.mode) == ("val_acc", "max")


def test_lower_is_better_where_the_name_or_the_user_says_so() -> None:
    race = contest(Script(), Budget(steps=300), mode="min")
    race.go()
    assert {run.variant for run in race.rungs[-1].runs} == {BASELINE, name(0.1), name(0.2), name(0.3)}


def test_a_finalist_trains_no_longer_than_the_user_would() -> None:
    script = Script(configured=150)
    contest(script, Budget(steps=300)).go()
    assert {pace.steps for *_, pace in script.calls[11:]} == {140}  # 150, cut to a multiple of 20 validations
    long = Script(configured=150)
    contest(long, Budget(seconds=3000)).go()
    assert {pace.steps for *_, pace in long.calls[11:]} == {140}


def test_the_budget_in_seconds_is_kept_and_later_rungs_are_equal_in_seconds() -> None:
    """A candidate whose step costs twice as much gets half of the steps once that is known."""
    script = Script()
    script.slow[name(0.9)] = 2.0
    race = contest(script, Budget(seconds=300))
    race.go()
    first = {one: pace for one, _, pace in script.calls[1:11]}
    assert len({pace.steps for pace in first.values()}) == 1
    plan = race.rungs[-1].plan
    spans = {one: pace.steps * 0.01 * script.slow.get(one, 1.0) + 0.5 * pace.evaluations for one, pace in plan.items()}
    assert max(spans.values()) - min(spans.values()) < 0.5
    assert plan[BASELINE].steps > 1.8 * plan[name(0.9)].steps
    assert 0.9 * 300 < script.now < 300 + 2
    assert plan[BASELINE].seconds == pytest.approx(2 * spans[BASELINE], rel=0.1)


def test_a_small_budget_leaves_candidates_out_and_a_tiny_one_is_an_error() -> None:
    script = Script(step=0.1)
    race = contest(script, Budget(seconds=50))
    race.go()
    assert [one.name for one in race.candidates] == [name(lr) for lr in LRS[:2]]
    assert len(race.left_out) == 7
    assert "Left out, for want of budget: sgd lr=0.3" in report_of(race).table(200)
    with pytest.raises(
        ValueError, match=r"budget of 30 s is too small for one candidate: a step takes 0\.1 s.* give at"
    ):
        contest(Script(step=0.1), Budget(seconds=30)).go()


def test_failures_are_verdicts_and_the_users_own_stays() -> None:
    script = Script()
    script.fail[name(0.9)] = RuntimeError("no kernel")
    script.diverge |= {name(0.8)}
    race = contest(script, Budget(steps=300))
    race.go()
    assert {run.variant for run in race.rungs[-1].runs} == {BASELINE, name(0.7), name(0.6), name(0.5)}
    table = report_of(race).table(250)
    assert "RuntimeError: no kernel" in table
    assert "diverged: the loss was not finite at step 8" in table


def test_nobody_left() -> None:
    """All candidates fail: the race ends after the first rung, and says so."""
    script = Script()
    script.diverge |= {name(lr) for lr in LRS}
    race = contest(script, Budget(steps=300))
    race.go()
    assert len(race.rungs) == 1
    assert "No candidate is left" in report_of(race).table(200)


def test_the_users_own_must_train() -> None:
    script = Script()
    script.fail[BASELINE] = RuntimeError("out of memory")
    with pytest.raises(RuntimeError, match="the own optimizer failed within 20 steps: RuntimeError: out of memory"):
        contest(script, Budget(steps=300)).go()
    with pytest.raises(ValueError, match=r"metric='val_f1' cannot be raced for: .*; name a metric"):
        contest(Script(), Budget(steps=300), metric="val_f1").go()


def test_an_interrupted_race_goes_on_where_it_stopped(tmp_path: Path) -> None:
    whole = Script()
    reference = contest(whole, Budget(seconds=300), RaceFiles(tmp_path / "a", {"seed": 0}, resume=False))
    reference.go()

    script = Script()
    script.interrupt_at = 14
    stopped = contest(script, Budget(seconds=300), RaceFiles(tmp_path / "b", {"seed": 0}, resume=False))
    with pytest.raises(KeyboardInterrupt):
        stopped.go()
    table = report_of(stopped, interrupted=True).table(200)
    assert "The race is not over" in table
    assert "Interrupted after" in table

    again = Script()
    again.now = script.now
    resumed = contest(again, Budget(seconds=300), RaceFiles(tmp_path / "b", {"seed": 0}, resume=True))
    resumed.go()
    assert script.calls + again.calls == whole.calls
    assert [rung.runs for rung in resumed.rungs] == [rung.runs for rung in reference.rungs]
    assert len(list((tmp_path / "b" / "runs").iterdir())) == len(whole.calls)


def test_a_folder_of_another_race_is_refused(tmp_path: Path) -> None:
    RaceFiles(tmp_path, {"seed": 0, "budget": "10m"}, resume=False)
    with pytest.raises(ValueError, match="holds a race; go on with it"):
        RaceFiles(tmp_path, {"seed": 0, "budget": "10m"}, resume=False)
    with pytest.raises(ValueError, match=r"other settings \(budget: '10m' then, '5m' now\)"):
        RaceFiles(tmp_path, {"seed": 0, "budget": "5m"}, resume=True)
    RaceFiles(tmp_path, {"seed": 0, "budget": "10m"}, resume=True)


def test_costs_come_from_the_median_batch_where_loaders_start_slowly() -> None:
    """10 steps of 2 batches of 0.1 s, 30 s for the workers, 2 validations of 1 s, 5 s beside the training."""
    run = Run(
        "a",
        0,
        quantities={"steps": 10, "train_seconds": 34, "validation_seconds": 2, "validations": 2, "wall_seconds": 39},
        samples={"batch_seconds": (0.1,) * 19},
    )
    cost = cost_of(run)
    assert (cost.step, cost.validation) == (pytest.approx(0.2), 1.0)
    assert overhead_of(run) == pytest.approx(35)
    assert cost_of(Run("b", 0, quantities={"steps": 10, "train_seconds": 4, "validation_seconds": 2})) == Cost(0.2, 2.0)


def finals(**scores: tuple[tuple[float, float | None], ...]) -> Report:
    """A report of (final metric, seconds to target) per variant and seed; ``own`` stands for the user's."""
    race = contest(Script(), Budget(steps=300))
    race.go()
    report = report_of(race)
    runs = [
        Run(
            BASELINE if variant == "own" else variant,
            seed,
            quantities={
                "final_metric": metric,
                "seconds_to_target": seconds,
                "samples_per_second": 1,
                "peak_memory": 1,
            },
            curves={"loss": ((0.1, float(seed)),)},
        )
        for variant, pairs in scores.items()
        for seed, (metric, seconds) in enumerate(pairs)
    ]
    return Report("race", BASELINE, runs, report.quantities)


def test_picks() -> None:
    own = ((0.80, 10.0), (0.81, 10.0), (0.79, 10.0))
    better = finals(own=own, a=((0.90, 5.0), (0.91, 5.5), (0.89, 6.0)), b=((0.85, 2.0), (0.86, None), (0.85, 2.0)))
    assert (pick_by_metric(better).name, pick_by_metric(better).resolved) == ("a", True)
    assert pick_by_metric(better).interval.estimate == pytest.approx(0.1)  # type: ignore[union-attr]
    # b is sooner, but not with every seed.
    assert (pick_by_time(better).name, pick_by_time(better).resolved) == ("a", True)
    assert "1.82x" in pick_by_time(better).sentence
    assert winner(better) == "a"


def test_no_difference_is_said() -> None:
    own = ((0.80, 10.0), (0.81, 10.0), (0.79, 10.0))
    same = finals(own=own, a=((0.83, 9.0), (0.80, 11.0), (0.82, 9.5)))
    pick = pick_by_metric(same)
    assert (pick.name, pick.resolved) == ("a", False)
    assert "no difference" in pick.sentence
    assert "no difference" in pick_by_time(same).sentence
    assert winner(same) == BASELINE
    two = finals(own=own[:2], a=((0.9, 1.0), (0.9, 1.0)))
    assert not pick_by_metric(two).resolved
    assert "3 seeds or more" in pick_by_metric(two).sentence
    worse = finals(own=own, a=((0.7, None), (0.7, None), (0.7, None)))
    assert (pick_by_metric(worse).name, pick_by_time(worse).name) == (BASELINE, BASELINE)


def test_sooner_but_worse_is_not_picked() -> None:
    own = ((0.80, 10.0), (0.81, 10.0), (0.79, 10.0))
    report = finals(own=own, a=((0.70, 5.0), (0.71, 5.0), (0.69, 5.0)))
    assert pick_by_time(report).name == BASELINE


def test_the_report_of_a_race() -> None:
    """The target is the worst end of the user's own runs; a candidate passes it on its way."""
    script = Script()
    race = contest(script, Budget(steps=300))
    race.go()
    report = report_of(race)
    assert report.variants[0] == BASELINE
    assert report.values("seconds_to_target", BASELINE) == pytest.approx((13.0, 13.0, 13.0))
    # 0.9 passes 0.55 between a half and seven tenths: at the seventh of ten points.
    assert report.values("seconds_to_target", name(0.9)) == pytest.approx((9.1, 9.1, 9.1))
    assert winner(report) == name(0.9)
    table = report.table(200)
    for words in (
        "final val_acc",
        "time to val_acc 0.55",
        "training speed",
        "peak memory",
        "Pick: sgd lr=0.9: lp.OptimizerFactory('sgd', lr=0.9)",
        "out after rung 1 of 2",
        "finalist",
        "A schedule with an end (linear, cosine, one cycle) ends with its rung",
    ):
        assert words in table, words
    assert {name for run in report.runs for name in run.curves} == {"loss", "val_acc"}
    assert report_of(race, target=0.85).quantity("seconds_to_target").label == "time to val_acc 0.85"
    assert report_of(race, target=0.85).values("seconds_to_target", BASELINE) == (None, None, None)


def test_seeds_that_change_nothing_decide_nothing() -> None:
    own = ((0.80, 10.0),) * 3
    report = finals(own=own, a=((0.9, 5.0),) * 3)
    alike = [
        Run(one.variant, one.seed, quantities=one.quantities, curves={"loss": ((0.1, 1.0),)}) for one in report.runs
    ]
    report = Report("race", BASELINE, alike, report.quantities)
    assert not pick_by_metric(report).resolved
    assert "noise is not known" in pick_by_metric(report).sentence
