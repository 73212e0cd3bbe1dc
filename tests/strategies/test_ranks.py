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
