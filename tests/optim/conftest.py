"""Rows that the registry may not have yet."""

from __future__ import annotations

import pytest

from lightning_perf.optim import registry


@pytest.fixture(autouse=True)
def _schedule_free_row(monkeypatch: pytest.MonkeyPatch) -> None:
    if "schedule_free_adamw" in registry._ROWS:
        return
    row = registry.OptimizerRow(
        "schedule_free_adamw",
        "lightning_perf.optim.schedule_free.ScheduleFreeAdamW",
        "AdamW whose averaged weights take the place of a schedule",
        "https://arxiv.org/abs/2405.15682",
        {"lr": 5e-3, "weight_decay": 1e-2, "betas": (0.9, 0.999)},
        state_bytes=8,
    )
    monkeypatch.setitem(registry._ROWS, row.name, row)
