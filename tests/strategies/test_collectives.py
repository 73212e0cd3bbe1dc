"""How often processes wait for each other in short fits, beside plain ddp."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests.ranks import run
from tests.strategies.collectives_worker import KINDS, LENGTHS

pytestmark = [pytest.mark.ddp, pytest.mark.slow]  # half a minute of processes: make test-all


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a rank of two counted."""
    out = tmp_path_factory.mktemp("collectives") / "results.json"
    return run("tests.strategies.collectives_worker", out, 2, seconds=240)


def of(results: dict[str, Any], name: str) -> dict[str, dict[str, list[str]]]:
    result = results.get(name, {"error": "not run: an earlier case failed"})
    assert "error" not in result, result["error"]
    return result


def total(phases: dict[str, list[str]]) -> int:
    return sum(len(names) for names in phases.values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("batches", "epochs"), LENGTHS)
def test_never_waits_more_often_than_ddp(kind: str, batches: int, epochs: int, found: dict[str, Any]) -> None:
    """Lightning's ddp waits once before every micro-batch; perf_ddp asks once, before all, whether buffers are alike."""
    results = [of(found, f"{name}-{kind}-{batches}x{epochs}") for name in ("ddp", "perf_ddp")]
    plain, perf = ({"waited": dict(result["waited"])} for result in results)
    asks = [one["waited"].pop("start", []) for one in (plain, perf)]
    assert len(asks[1]) <= len(asks[0]) + 1
    assert 0 < total(perf["waited"]) <= total(plain["waited"])
    assert len(perf["waited"].get("end", [])) <= len(plain["waited"].get("end", []))


def test_eight_steps(found: dict[str, Any]) -> None:
    """Behind what both do before the first one, and the layout of buffers: ddp waits in each, perf_ddp in the first, for
    the number of batches."""
    plain, perf = (of(found, f"{name}-Bare-8x1") for name in ("ddp", "perf_ddp"))
    steps = [f"step {index}" for index in range(8)]
    assert [plain["waited"].get(step) for step in steps] == [["broadcast"]] * 8
    assert [perf["waited"].get(step) for step in steps] == [["all_reduce"], *[None] * 7]
    assert Counter([*plain["waited"]["start"], "all_reduce"]) == Counter(perf["waited"]["start"])
    assert plain["waited"].get("end") == perf["waited"].get("end")
    assert total(plain["started"]) == 0
    asked = [step for step in steps if "all_reduce" in perf["started"].get(step, [])]
    assert asked[:2] == steps[:2]  # how long a step takes is known from the second one on
