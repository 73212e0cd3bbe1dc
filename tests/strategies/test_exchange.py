"""Exchanges of gradients between two processes, where something is mixed or fails."""

from __future__ import annotations

from typing import Any

import pytest

from tests.ranks import run
from tests.strategies.test_ranks import of

pytestmark = [pytest.mark.ddp, pytest.mark.slow]  # half a minute of processes: make test-all


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two ranks found."""
    return run("tests.strategies.exchange_worker", tmp_path_factory.mktemp("two") / "results.json", 2, seconds=150)


def test_parameters_of_two_widths(two: dict[str, Any]) -> None:
    """Nobody waits for a bucket of another dtype; the roundings of bfloat16 (1/256) and int8 (1/254), and one of the sum."""
    result = of(two, "mixed")
    assert result["gradients"] == 3 * 6
    assert 0 < result["apart"]["bf16"] < 2 / 256
    assert 0 < result["apart"]["int8"] < 2 / 127


@pytest.mark.parametrize("where", ["backward", "forward"])
@pytest.mark.parametrize("compression", ["bf16", "int8"])
def test_a_fit_after_one_that_failed(compression: str, where: str, two: dict[str, Any]) -> None:
    """What was on its way when an exception ended a fit does not stop the next one."""
    assert of(two, f"failed-{compression}-{where}") == {"failed": True, "equal": True}


@pytest.mark.parametrize("order", ["cleared_behind", "cleared_before", "apart"])
def test_nothing_owed_is_lost_in_a_backward_that_leaves_parameters_unused(order: str, two: dict[str, Any]) -> None:
    """60 slopes of 0.001 and 0.002, whose mean arrives; int8 may still owe half of 2 / 127 and of 1 / 127."""
    result = of(two, f"turns-{order}")
    for compression, most in {"None": 1e-6, "bf16": 0.09 / 256, "int8": 0.75 * 2 / 127}.items():
        assert result[compression] == pytest.approx([-0.09, -0.09], abs=most), compression
