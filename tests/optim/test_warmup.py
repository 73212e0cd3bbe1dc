"""The warm-up that a schedule-free optimizer gets: a share of the run, more for modules that need a slow start."""

from __future__ import annotations

import pytest
from torch import nn

from lightning_perf.optim.warmup import needs_warmup, own_warmup


class CausalAttention(nn.Module):
    """Somebody's own, of plain linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(4, 12)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.Linear(4, 2)), None),
        (nn.LSTM(4, 4), None),
        (nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), "LayerNorm"),
        (nn.Sequential(nn.Linear(4, 4), nn.RMSNorm(4)), "RMSNorm"),
        (nn.Sequential(nn.Embedding(4, 4), nn.LSTM(4, 4)), "Embedding"),
        (nn.MultiheadAttention(4, 2), "MultiheadAttention"),
        (nn.Sequential(CausalAttention()), "CausalAttention"),
    ],
    ids=str,
)
def test_what_needs_a_slow_start(module: nn.Module, name: str | None) -> None:
    assert needs_warmup(module) == name


@pytest.mark.parametrize(
    ("warmup", "total", "plain", "slow"),
    [
        (0.05, 300, 15, 60),
        (0.05, 10_000, 500, 500),
        (0.05, 100, 5, 20),
        (0.5, 100, 50, 50),
        (0.05, 3, 0, 0),
        (7, 300, 7, 7),
        (0, 300, 0, 0),
        (0.0, 300, 0, 0),
        (0.05, None, 100, 100),
        (7, None, 7, 7),
    ],
)
def test_steps(warmup: float | int, total: int | None, plain: int, slow: int) -> None:
    """By hand: a share of the run; 60 or a fifth of it where needed; a number of steps, and none, are taken as given."""
    assert own_warmup(nn.Linear(2, 2), warmup, total) == (plain, "")
    steps, why = own_warmup(nn.LayerNorm(2), warmup, total)
    assert steps == slow
    assert ("LayerNorm" in why) == (slow > plain)


def test_a_warm_up_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="warmup=-1 is not a warm-up"):
        own_warmup(nn.Linear(2, 2), -1, 100)
