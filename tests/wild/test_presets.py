"""Every DDP preset on modules that other people wrote: two ranks, one process group, one start for all of them."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lightning_perf.strategies.presets import PRESETS
from tests.ranks import run
from tests.wild.cases import CASES, Case
from tests.wild.runs import noise

pytestmark = [pytest.mark.ddp, pytest.mark.slow]  # more than a minute of processes: make test-all

PAIRS = [(preset, case) for case in CASES for preset in PRESETS]


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two ranks found."""
    return run("tests.wild.ddp_worker", tmp_path_factory.mktemp("presets") / "results.json", 2, seconds=600)


def of(results: dict[str, Any], case: Case, preset: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What a preset did to a module, and what plain ddp did under each seed."""
    if reason := case.missing():
        pytest.skip(reason)
    told = results.get(case.name, {"error": "not run: an earlier case failed"})
    assert "error" not in told, told["error"]
    for plain in told["ddp"]:
        assert "error" not in plain, f"plain ddp fails: {plain['error']}"
    return told[preset], told["ddp"]


def over(*promises: str) -> pytest.MarkDecorator:
    """One test per preset that makes one of these promises, and module."""
    pairs = [(preset, case) for preset, case in PAIRS if PRESETS[preset].promise in promises]
    return pytest.mark.parametrize(("preset", "case"), pairs, ids=[f"{preset}-{case.name}" for preset, case in pairs])


@over("exact", "near", "changes")
def test_fits_with_equal_ranks_and_keys(preset: str, case: Case, results: dict[str, Any]) -> None:
    """As many steps as plain ddp, finite losses, the same keys of the state, and the same weights on both ranks."""
    ours, [plain, *_] = of(results, case, preset)
    assert "error" not in ours, ours["error"]
    assert "refusal" not in ours, ours["refusal"]
    assert ours["steps"] == plain["steps"] > 0
    assert math.isfinite(ours["loss"])
    assert ours["keys"]
    assert ours["equal_ranks"]


@over("exact")
def test_exact_presets_give_the_results_of_ddp(preset: str, case: Case, results: dict[str, Any]) -> None:
    """Weights, losses and metrics on both ranks, and the buffers that a checkpoint holds, bit for bit."""
    ours, _ = of(results, case, preset)
    assert {name: ours[name] for name in ("weights", "buffers", "losses", "metrics")} == dict.fromkeys(
        ("weights", "buffers", "losses", "metrics"), True
    )


@over("near")
def test_rounded_gradients_stay_within_seed_noise(preset: str, case: Case, results: dict[str, Any]) -> None:
    """The loss is nearer to that of plain ddp than three seeds of plain ddp are to each other."""
    ours, plain = of(results, case, preset)
    assert not ours["weights"]  # gradients were rounded at all
    assert abs(ours["loss"] - plain[0]["loss"]) < noise([run["loss"] for run in plain])
