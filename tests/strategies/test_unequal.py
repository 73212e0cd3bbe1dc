"""Buffers that differ between processes: plain ddp mixes their numbers with others, or ends the job."""

from __future__ import annotations

from typing import Any

import pytest

from tests.ranks import run
from tests.strategies.test_ranks import of
from tests.strategies.unequal_worker import GROWTH, PRESETS

pytestmark = pytest.mark.ddp


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two ranks found."""
    return run("tests.strategies.unequal_worker", tmp_path_factory.mktemp("two") / "results.json", 2, seconds=120)


@pytest.mark.parametrize("kind", [kind for kind in GROWTH if kind not in ("none", "alike")])
@pytest.mark.parametrize("preset", PRESETS)
def test_unequal_buffers_stay_where_they_are(preset: str, kind: str, two: dict[str, Any]) -> None:
    """Unequal from the start, from the first step, or later on either rank; one line says so, and the rest goes on."""
    result = of(two, f"{preset}-{kind}")
    said = [line for line in result["messages"] if "queue" in line]
    assert said == [f"{preset}: buffers that differ between processes stay each one's own: queue."]
    for name in ("weights", "rest", "own", "equal"):
        assert result[name], (name, result)


def test_what_grows_alike_is_that_of_rank_zero(two: dict[str, Any]) -> None:
    assert of(two, "alike") == {"weights": True, "queue": True, "rows": 3 + 12}


def test_nothing_more_is_asked_where_nothing_differs_any_more(two: dict[str, Any]) -> None:
    """Beside the run without the queue, which is unequal from the start."""
    assert of(two, "perf_ddp-shaped")["more"] == {}
