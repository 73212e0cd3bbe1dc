"""Presets on several processes, from one start per number of them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from lightning_perf.strategies.compression import bytes_on_the_wire
from lightning_perf.strategies.presets import PRESETS
from tests.ranks import run
from tests.strategies.worker import EXACT, NEAR

pytestmark = [pytest.mark.ddp, pytest.mark.slow]  # two minutes of processes: make test-all

FOUR = ("perf_ddp-adamw_clipped", "perf_ddp_bf16-sgd", "perf_ddp_int8-sgd", "perf_local_sgd-sgd")


@pytest.fixture(scope="session")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two ranks found."""
    return run("tests.strategies.worker", tmp_path_factory.mktemp("two") / "results.json", 2)


@pytest.fixture(scope="session")
def four(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What four ranks found, in a few of the cases."""
    evaluations = [f"evaluation-{preset}" for preset in PRESETS]
    return run("tests.strategies.worker", tmp_path_factory.mktemp("four") / "results.json", 4, *FOUR, *evaluations)


def of(results: dict[str, Any], name: str) -> Any:
    result = results.get(name, {"error": "not run: an earlier case failed"})
    assert "error" not in result, result["error"]
    return result


@pytest.mark.parametrize("case", [f"{preset}-{name}" for preset, name in EXACT])
def test_exact_presets_end_where_ddp_ends(case: str, two: dict[str, Any]) -> None:
    """Weights, every loss and every metric on both ranks, bit for bit; buffers where the checkpoint is written."""
    result = of(two, case)
    for name in ("parameters", "buffers", "losses", "metrics", "equal_ranks"):
        assert result[name], (name, result)


def test_exact_on_four_ranks(four: dict[str, Any]) -> None:
    """Weights and buffers; sums of metrics are rounded once here and at every addition in plain ddp."""
    result = of(four, FOUR[0])
    assert [result[name] for name in ("parameters", "buffers", "equal_ranks")] == [True] * 3
    for plain, perf in result["apart"].values():
        assert perf == pytest.approx(plain, rel=1e-6)


def test_what_need_not_travel_does_not(two: dict[str, Any]) -> None:
    """DDP asks before 5 of 6 forwards of an epoch, of which 2 are watched, at a validation, and once at the very start."""
    counts = of(two, "perf_ddp-sgd")["counts"]
    assert counts["_broadcast_coalesced"] == 1 + 1 + 2 * (2 + 1)
    assert of(two, "perf_ddp-changing_buffers")["counts"]["_broadcast_coalesced"] == 1 + 1 + 2 * (5 + 1)
    assert "broadcast" not in counts


def test_static_steps_aside_under_accumulation(two: dict[str, Any]) -> None:
    assert "static_graph stays off" in of(two, "perf_ddp_static-accumulated")["messages"][0]
    assert of(two, "perf_ddp_static-sgd")["messages"] == []


def test_overlap_says_what_it_chose(two: dict[str, Any]) -> None:
    assert "buckets of" in of(two, "perf_ddp_overlap-adamw_clipped")["messages"][0]


@pytest.mark.parametrize("case", [f"{preset}-{name}" for preset, name in NEAR])
def test_ranks_agree_wherever_somebody_looks(case: str, two: dict[str, Any]) -> None:
    """At every validation and checkpoint and at the end; local SGD parts the ranks in between, the others never do."""
    result = of(two, case)
    assert all(result["equal"])
    assert len(result["equal"]) > 5
    assert 0 < result["distance"] < result["moved"]
    local = case.startswith("perf_local_sgd")
    assert all(result["parted"]) != local
    assert result["buffers"] or not local


@pytest.mark.parametrize("case", FOUR[1:])
def test_ranks_agree_on_four(case: str, four: dict[str, Any]) -> None:
    assert all(of(four, case)["equal"])


@pytest.mark.parametrize("compression", ["bf16", "int8"])
def test_bytes_are_those_of_the_formula(compression: str, two: dict[str, Any]) -> None:
    result = of(two, f"perf_ddp_{compression}-sgd")
    assert result["sent"] == [bytes_on_the_wire(compression, result["sizes"], 2)] * 12  # one bucket, one message a step
    accumulated = of(two, f"perf_ddp_{compression}-accumulated")
    assert len(accumulated["sent"]) == 6


def test_int8_on_four_ranks_sends_to_three(four: dict[str, Any]) -> None:
    result = of(four, "perf_ddp_int8-sgd")
    steps = len(result["sent"]) / 3
    assert steps == 6
    assert sum(result["sent"]) == steps * bytes_on_the_wire("int8", result["sizes"], 4)


@pytest.mark.parametrize("compression", ["bf16", "int8"])
def test_swapped_messages_are_those_of_an_all_gather(compression: str, two: dict[str, Any]) -> None:
    """12 steps; 6 parameters in buckets of their own once DDP has built them anew, with a static graph a step later."""
    result = of(two, f"exchange-{compression}")
    assert result["equal"] == {"one": True, "many": True, "static": True}
    assert result["skipped"]  # where DDP leaves buckets out there is no last one to wait in: gathered
    assert result["messages"] == {"gathered": 0, "one": 12, "many": 1 + 6 * 11, "static": 2 + 6 * 10}


def test_error_feedback_travels_in_the_checkpoint(two: dict[str, Any]) -> None:
    """A resumed run equals the uninterrupted one; plain ddp loads the same file."""
    assert of(two, "resume") == {"equal": True, "residuals": 2, "nonzero": True, "plain": True}


def test_a_trainer_fits_twice(two: dict[str, Any]) -> None:
    assert of(two, "again") == {"equal": True}


def test_uneven_epochs_end_together(two: dict[str, Any]) -> None:
    """The shorter rank has 4 batches (with a length) or 3 (without)."""
    assert of(two, "uneven_sized") == {"steps": 2 * 4, "equal": True}
    assert of(two, "uneven_stream") == {"steps": 2 * 3, "equal": True}


def test_uneven_epochs_are_validated_together(two: dict[str, Any]) -> None:
    """Of 10 and 12 batches; a number of batches over the whole run is longer than an epoch, and stays so."""
    result = of(two, "uneven_validation")
    assert result["half"] == {"steps": 20, "validated": [[5, 10, 15, 20]] * 2}
    assert result["total"] == {"steps": 20, "validated": [[15]] * 2}


def test_an_uneven_epoch_resumes_where_it_ended(two: dict[str, Any]) -> None:
    """From the last of 10 batches, of which rank 0 has 12: 10 more, in one more epoch."""
    assert of(two, "uneven_resume") == {"ended": [[20, 2, 20]] * 2, "equal": True}


def test_limited_streams_end_together(two: dict[str, Any]) -> None:
    """Two epochs: of 3 batches where one rank has no more, of 4 where all have enough."""
    assert of(two, "uneven_limited") == {"6": [2 * 3] * 2, "10": [2 * 4] * 2}


def test_optimizer_state_of_rank_zero(two: dict[str, Any]) -> None:
    assert of(two, "adopted_state") == {"adopted": True, "differed": True, "refused": True}


def test_hooks_of_the_user_run_on_gloo(two: dict[str, Any]) -> None:
    assert of(two, "hook") == {"calls": 12, "equal": True}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_parameters", "unfreeze"),
        ("lbfgs", "LBFGS compares losses.*use strategy='perf_ddp'"),
        ("zero", "ZeroRedundancyOptimizer steps each.*use strategy='perf_ddp'"),
        ("sparse", "table has sparse gradients.*use strategy='perf_ddp'"),
        ("nccl", "cannot reduce tensors on the CPU; use process_group_backend='gloo'"),
        ("world_size", "7 processes is initialised already, and the Trainer expects 2"),
    ],
)
def test_refusals(name: str, words: str, two: dict[str, Any]) -> None:
    assert re.search(words, of(two, "refusals")[name])


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("preset", PRESETS)
def test_every_sample_once_and_in_order(
    preset: str, world_size: int, two: dict[str, Any], four: dict[str, Any]
) -> None:
    """Of 10 samples four ranks get 3, 3, 2 and 2; sample i is the one of number i // W on rank i % W."""
    result = of(two if world_size == 2 else four, f"evaluation-{preset}")
    predicted, tested = result["predicted"], result["tested"]
    assert [len(one) for one in predicted] == ([5, 5] if world_size == 2 else [3, 3, 2, 2])
    assert [predicted[index % world_size][index // world_size] for index in range(10)] == list(range(10))
    assert sorted(index for one in tested for index in one) == list(range(8))
