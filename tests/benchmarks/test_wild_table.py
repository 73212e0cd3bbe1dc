"""The cells of the tables of docs/wild.md."""

from __future__ import annotations

from typing import Any

from benchmarks.wild_table import moved, preset_cells
from lightning_perf.strategies.presets import PRESETS

GOOD: dict[str, Any] = {"steps": 8, "loss": 1.0} | dict.fromkeys(
    ("keys", "equal_ranks", "weights", "buffers", "losses", "metrics"), True
)


def test_moved_weighs_a_loss_against_the_noise() -> None:
    plain = [1.0, 0.8, 1.1]  # seeds lie 0.3 apart
    assert [moved(loss, plain) for loss in (1.29, 1.4, 0.6)] == ["1 → 1.29", "1 → 1.4, worse", "1 → 0.6, better"]


def test_preset_cells_tell_failures() -> None:
    plain = [{**GOOD, "loss": loss} for loss in (1.0, 1.5)]
    odd = {
        "perf_ddp_static": {"refusal": "use perf_ddp"},
        "perf_ddp_overlap": {"error": "RuntimeError: no"},
        "perf_ddp_bf16": {**GOOD, "weights": False, "loss": 1.25},
        "perf_ddp_int8": {**GOOD, "weights": False, "loss": 2.5},
        "perf_local_sgd": {**GOOD, "equal_ranks": False},
        "perf_ddp_auto": {**GOOD, "steps": 7},
    }
    cells = preset_cells({"ddp": plain, **dict.fromkeys(PRESETS, GOOD), **odd})
    assert dict(zip(["ddp", *PRESETS], cells, strict=True)) == {
        "ddp": "1 to 1.5",
        "perf_ddp": "identical",
        "perf_ddp_static": "refuses",
        "perf_ddp_overlap": "**fails**: RuntimeError",
        "perf_ddp_bf16": "1 → 1.25",
        "perf_ddp_int8": "1 → 2.5, worse",
        "perf_local_sgd": "**other steps, keys or ranks**",
        "perf_ddp_auto": "**other steps, keys or ranks**",
    }
    assert preset_cells({"ddp": [{"error": "TypeError: x"}]}) == ["**fails without us**: TypeError"]
    assert preset_cells({"error": "Traceback\nKeyError: 3"}) == ["**fails**: KeyError: 3"]
