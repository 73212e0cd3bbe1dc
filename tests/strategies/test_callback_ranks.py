"""The callbacks of the house under every preset, on two processes from one start."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_perf.strategies.presets import PRESETS
from tests.ranks import run
from tests.strategies.callbacks_worker import CALLBACKS, SPARSITY

pytestmark = [pytest.mark.ddp, pytest.mark.slow]  # a minute of processes: make test-all

#: perf_local_sgd averages weights, and schedule-free optimizers keep more than those.
REFUSED = ("perf_local_sgd", "schedule_free")
OPTIMIZERS = {"adamw": "AdamW", "ema": "AdamW", "schedule_free": "ScheduleFreeAdamW"}


@pytest.fixture(scope="session")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two ranks found."""
    return run("tests.strategies.callbacks_worker", tmp_path_factory.mktemp("callbacks") / "results.json", 2)


def of(results: dict[str, Any], preset: str, callback: str) -> Any:
    result = results.get(f"{preset}-{callback}", {"error": "not run: an earlier case failed"})
    assert "error" not in result, result["error"]
    return result


@pytest.mark.parametrize("callback", CALLBACKS)
@pytest.mark.parametrize("preset", PRESETS)
def test_ranks_stay_together(preset: str, callback: str, found: dict[str, Any]) -> None:
    """Weights at every validation and checkpoint and at the end; zeros and ranges behind every batch.

    One process sees numbers twice as large. Exact presets end where plain ddp with the same callback ends.
    """
    result = of(found, preset, callback)
    if (preset, callback) == REFUSED:
        assert result["refused"].startswith("ScheduleFreeAdamW keeps a second copy of the weights")
        assert result["refused"].endswith("use strategy='perf_ddp'.")
        return
    assert all(result["weights"])
    assert all(result["zeros"])
    assert all(result["ranges"])
    assert result.get("as_ddp", True)
    assert result["acting"] == ("perf_ddp" if preset == "perf_ddp_auto" else preset)
    if callback == "profiler":
        return
    batches = 66 if preset == "perf_ddp_auto" else 12
    assert len(result["zeros"]) == batches
    assert len(result["ranges"]) == (batches if callback == "quantization" else 0)
    assert result["sparsity"] == (SPARSITY if "pruning" in callback else 0.0)
    assert result["optimizer"] == OPTIMIZERS.get(callback, "SGD")


@pytest.mark.parametrize("preset", PRESETS)
def test_the_slowest_rank_is_named(preset: str, found: dict[str, Any]) -> None:
    """Wherever the other one waits for it: in backward, for what is logged, or for an average of weights."""
    notes = of(found, preset, "profiler")["notes"]
    assert any(note.startswith("Rank 1 is the slowest") for note in notes), notes
