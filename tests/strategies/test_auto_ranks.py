"""``perf_ddp_auto`` on two processes, from one start."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_perf.strategies.presets import POOLS
from tests.ranks import log_of, run
from tests.strategies.auto_worker import EXACT, NEAR

pytestmark = [pytest.mark.ddp, pytest.mark.slow]  # two minutes of processes: make test-all


@pytest.fixture(scope="session")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two ranks found, and what each of them printed."""
    out = tmp_path_factory.mktemp("auto") / "results.json"
    return {
        **run("tests.strategies.auto_worker", out, 2),
        "printed": [log_of(out, rank).read_text() for rank in (0, 1)],
    }


def of(results: dict[str, Any], name: str) -> Any:
    result = results.get(name, {"error": "not run: an earlier case failed"})
    assert "error" not in result, result["error"]
    return result


@pytest.mark.parametrize("case", [f"{winner}-{name}" for name, winner in (*EXACT, *NEAR)])
def test_ends_where_the_chosen_one_ends(case: str, found: dict[str, Any]) -> None:
    """Weights, buffers, losses, metrics, samples in their order, calls of hooks, optimizer and generator state."""
    result = of(found, case)
    assert result["chosen"] == result["acting"] == case.partition("-")[0]
    assert [name for name, same in result["alike"].items() if not same] == []


@pytest.mark.parametrize("case", [f"{winner}-{name}" for name, winner in (*EXACT, *NEAR)])
def test_costs_at_most_sixty_steps_and_accounts_for_all(case: str, found: dict[str, Any]) -> None:
    result = of(found, case)
    said, taken = result["steps"]
    assert 50 < said == taken <= 60
    pool = POOLS["near" if case in [f"{winner}-{name}" for name, winner in NEAR] else "exact"]
    assert set(result["verdicts"]) == {"no exchange", *(row.name for row in pool)}
    assert list(result["verdicts"].values()).count("chosen") == 1
    assert len(result["messages"]) == 1


@pytest.mark.parametrize(
    ("case", "words"),
    [("accumulated", "accumulated gradients"), ("unused", "find_unused_parameters"), ("two_optimizers", "manual")],
)
def test_static_is_left_out_with_the_reason(case: str, words: str, found: dict[str, Any]) -> None:
    verdict = of(found, f"perf_ddp-{case}")["verdicts"]["perf_ddp_static"]
    assert verdict.startswith("unsupported here because")
    assert words in verdict


def test_ranks_that_measure_different_times_choose_the_same(found: dict[str, Any]) -> None:
    """A step lasts as long as on its slowest rank: perf_ddp 0.7 s; what is fast on one rank only is not fast."""
    assert of(found, "disagreeing") == {"chosen": ["perf_ddp", "perf_ddp"], "same_table": True}


def test_four_per_cent_are_not_enough(found: dict[str, Any]) -> None:
    assert of(found, "hardly_faster") == {"chosen": "ddp", "verdict": "gains less than 5%"}


def test_nothing_else_is_tried_where_there_is_nothing_to_gain(found: dict[str, Any]) -> None:
    result = of(found, "nothing_to_gain")
    assert result["chosen"] == "ddp"
    assert result["taken"] == ["ddp", "no exchange"]
    assert "no preset could gain 5 %" in result["text"]
    assert "not tried" in result["text"]


def test_with_the_real_clock_and_in_both_namespaces(found: dict[str, Any]) -> None:
    result = of(found, "real_clock")
    assert [name for name, same in result["alike"].items() if not same] == []
    assert 0 < result["steps"] <= 60
    assert 0 < result["other"] <= 60


def test_what_cannot_be_tried_says_so(found: dict[str, Any]) -> None:
    result = of(found, "untried")
    assert "this run has 12" in result["said"]["short"]
    assert result["said"]["uncopied"] == "another process cannot try the presets"  # rank 0 could
    assert result["equal"]


def test_batches_that_come_once_are_not_lost(found: dict[str, Any]) -> None:
    result = of(found, "once")
    assert result["order"]
    assert result["chosen"] == "perf_ddp"
    assert [name for name, same in result["alike"].items() if not same] == []


def test_a_run_that_rounds_goes_on_as_it_began(found: dict[str, Any]) -> None:
    assert of(found, "resume") == {"equal": True, "chosen": "perf_ddp_int8", "tried": 0}


def test_a_trainer_fits_twice(found: dict[str, Any]) -> None:
    assert of(found, "again") == {"equal": True, "said": 2}


def test_sigterm_during_the_trials(found: dict[str, Any]) -> None:
    assert of(found, "sigterm") == {"ended": True, "steps": 0, "own": True}


def test_the_table_is_printed_once_on_rank_zero(found: dict[str, Any]) -> None:
    """Every fit above that tried something printed one, and rank 1 none."""
    of(found, "again")
    first, second = found["printed"]
    assert first.count("perf_ddp_auto: perf_ddp_static is used") == 1
    assert first.count("perf_ddp_auto: perf_ddp_overlap is used") == 1
    assert "perf_ddp_auto" not in second
