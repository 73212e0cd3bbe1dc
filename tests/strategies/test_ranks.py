"""Presets on several processes: exact ones end where plain ddp ends, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest

from tests.strategies.launch import run
from tests.strategies.worker import CASES

pytestmark = pytest.mark.ddp


@pytest.fixture(scope="session")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two ranks found, from one start."""
    return run("tests.strategies.worker", tmp_path_factory.mktemp("two") / "results.json", 2)


@pytest.mark.parametrize("case", [f"perf_ddp-{case.name}" for case in CASES])
def test_exact_presets_end_where_ddp_ends(case: str, two: dict[str, Any]) -> None:
    result = two.get(case, {"error": "not run: an earlier case failed"})
    assert "error" not in result, result["error"]
    for name in ("parameters", "buffers", "losses", "metrics", "equal_ranks"):
        assert result[name], (name, result)


def test_what_need_not_travel_does_not(two: dict[str, Any]) -> None:
    """Of 6 forwards an epoch 2 are watched; besides, buffers travel at the start of a validation and of DDP itself."""
    counts = two["perf_ddp-sgd"]["counts"]
    assert counts["_broadcast_coalesced"] == 1 + 1 + 2 * (2 + 1)
    assert two["perf_ddp-changing_buffers"]["counts"]["_broadcast_coalesced"] == 1 + 1 + 2 * (6 + 1)
    assert "broadcast" not in counts
