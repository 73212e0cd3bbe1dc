"""The contract under DDP with two ranks; all cases share one process group."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.rows import ROWS, Row
from tests.ranks import run

pytestmark = pytest.mark.ddp


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the two ranks found, from one start."""
    return run("tests.contract.ddp_worker", tmp_path_factory.mktemp("ddp") / "results.json", 2, seconds=600)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_equal_ranks_and_lossless(row: Row, results: dict[str, Any]) -> None:
    """Both ranks end with equal weights; a lossless lever ends where plain DDP ends."""
    result = results.get(row.name, {"error": "not run: an earlier case failed"})
    assert "error" not in result, result["error"]
    assert result["equal_ranks"]
    if row.lossless == "bitwise":
        assert result["difference"] == 0.0
    elif row.lossless == "rounding":
        assert result["difference"] < 1e-3


def test_resume_is_exact_on_every_rank(results: dict[str, Any]) -> None:
    """All of ``lossless()``, with dropout that differs between ranks: resumed equals uninterrupted, bit for bit."""
    assert results["resume"] == {"difference": 0.0, "equal_ranks": True}


def test_the_profiler_names_the_slowest_rank(results: dict[str, Any]) -> None:
    """The wait of the others lies inside backward and must not be taken for their own time."""
    notes = results["slowest_rank"]["notes"]
    assert any(note.startswith("Rank 1 is the slowest") for note in notes), notes
    assert results["slowest_rank"]["steps"] == 9


def test_resume_with_averaged_weights(results: dict[str, Any]) -> None:
    """The training weights and the moving average come back on both ranks."""
    assert results["resume_averaged"] == {"difference": 0.0, "equal_ranks": True}


def test_quantization_ranges_are_equal(results: dict[str, Any]) -> None:
    """Ranges of activations are those of both ranks together."""
    assert results["ranges"] == {"equal_ranges": True, "known": True, "weights": True}


def test_two_optimizers(results: dict[str, Any]) -> None:
    """Manual optimization with two optimizers under all of ``lossless()``."""
    assert results["two_optimizers"] == {"equal_ranks": True}


def test_random_masks(results: dict[str, Any]) -> None:
    """Masks that every rank would draw for itself are those of rank 0."""
    assert results["random_masks"] == {"equal_ranks": True, "sparsity": 0.5}
