"""``quantize`` with a Trainer on two ranks: what one rank knows, all of them know."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest

import lightning_perf as lp
from lightning_perf.quantization import preparation
from tests.quantization.modules import images, make
from tests.ranks import run

pytestmark = pytest.mark.ddp


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run("tests.quantization.ddp_worker", tmp_path_factory.mktemp("ddp") / "results.json", 2, seconds=120)


def case(results: dict[str, Any], name: str) -> dict[str, Any]:
    assert "error" not in results.get(name, {"error": "not run: an earlier case failed"}), results[name]["error"]
    return results[name]


def test_ranges_are_those_of_all_ranks(results: dict[str, Any]) -> None:
    """Equal, and the two ends of the data of both ranks, narrowed by one factor."""
    found = case(results, "calibrated")
    assert found["equal"]
    at_low, at_high = found["narrowed"]
    assert at_low == pytest.approx(at_high, rel=1e-5)
    assert 0.5 < at_low <= 1.0


def test_what_stays_in_float_is_agreed_on(results: dict[str, Any]) -> None:
    found = case(results, "within_a_budget")
    assert found["equal"]
    assert found["active"] == [1.0, 0.0, 1.0]


def test_a_rank_that_fails_does_not_fail_alone(results: dict[str, Any]) -> None:
    assert case(results, "broken_on_one_rank") == {"told": [True, True]}


def test_processes_of_their_own_are_refused(quiet: dict[str, Any]) -> None:
    """Ranges that are found in processes which the Trainer starts and ends do not come back."""
    trainer = pl.Trainer(**{**quiet, "devices": 2, "strategy": "ddp_fork"})
    module = make(pl)
    with pytest.raises(ValueError, match=r"DDPStrategy validates in 2 processes of its own.* use strategy='ddp'"):
        lp.quantize(module, images(16), trainer=trainer)
    assert preparation(module) is None
