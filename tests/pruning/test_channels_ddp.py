"""A cut at an epoch boundary on two ranks, pulled before it: equal ranks, wrapped anew, the run by hand."""

from __future__ import annotations

from typing import Any

import pytest

from tests.ranks import run

pytest.importorskip("torch_pruning", reason="needs torch-pruning (extra prune)")
pytestmark = pytest.mark.ddp


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the two ranks found, from one start."""
    return run("tests.pruning.ddp_worker", tmp_path_factory.mktemp("ddp") / "results.json", 2)


def test_regularized(results: dict[str, Any]) -> None:
    """Against one process that takes the mean of both gradients, adds the penalty's, and cuts where rank zero would."""
    found = results["regularized"]
    assert "error" not in found, found["error"]
    difference = found.pop("difference")
    assert found == {"equal_ranks": True, "wrapped_again": True, "smaller": True, "same_shapes": True}
    assert difference < 2e-5


def test_latency(results: dict[str, Any]) -> None:
    """Rank zero measures for all, and a target out of reach is an error on both."""
    found = results.get("latency", {"error": "not run: an earlier case failed"})
    assert "error" not in found, found["error"]
    assert found["equal_ranks"]
    assert 0.3 < found["share"] <= 0.5
    assert found["measured_by"] == [[0, 0], []]
    assert all("target=0.01 cannot be met" in error for error in found["errors"])
