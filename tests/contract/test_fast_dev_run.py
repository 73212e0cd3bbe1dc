"""``fast_dev_run`` is how users try a configuration: whatever a real run accepts, one of a few batches goes through."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

import lightning_perf as lp
from tests.contract.modules import images, make
from tests.contract.rows import ROWS

#: Settings that need a long run, beside the rows.
LONG: dict[str, Callable[[], Any]] = {
    "warmup": lambda: lp.OptimizerFactory("adamw", lr=3e-3, schedule="warmup_cosine", warmup=1000),
    "wsd": lambda: lp.OptimizerFactory("adamw", lr=3e-3, schedule="wsd", warmup=100),
    "own_warmup": lambda: lp.OptimizerFactory("schedule_free_adamw", lr=3e-3, warmup=100),
    "recalibrate": lambda: lp.OptimizerFactory(ema=0.999, recalibrate=50),
    "profile": lambda: lp.ThroughputProfiler(roofline=False),
    "prune": lambda: lp.MagnitudePruning(0.5, start=0.3, end=0.7),
    "one_shot": lambda: lp.MagnitudePruning(0.5, schedule="one_shot", start=0.5),
    "movement": lambda: lp.MagnitudePruning(0.5, criterion="movement"),
    "rewind_step": lambda: lp.MagnitudePruning(0.5, rewind_to=5),
    "rewind_fraction": lambda: lp.MagnitudePruning(0.5, rewind_to=0.05),
    "channels": lambda: lp.ChannelPruning(0.8, round_to=2),
    "channels_steps": lambda: lp.ChannelPruning(0.8, at=0.0, steps=3, round_to=2),
    "channels_pulled": lambda: lp.ChannelPruning(0.8, at=0.5, steps=2, round_to=2, regularize=1e-3),
    "qat_late": lambda: lp.QuantizationAwareTraining(start=0.5, freeze_observers=0.9),
    "qat_batches": lambda: lp.QuantizationAwareTraining(start=100, freeze_observers=200, freeze_batch_norm=150),
    "qat_distill": lambda: lp.QuantizationAwareTraining(distill=True),
}
CASES = {**{row.name: row.make for row in ROWS}, **LONG}


def dry(make_callback: Callable[[], Any], batches: int | bool, quiet: dict[str, Any], kind: str = "plain") -> Any:
    import lightning.pytorch as pl

    callback = make_callback()
    if isinstance(callback, lp.ChannelPruning) and importlib.util.find_spec("torch_pruning") is None:
        pytest.skip("needs torch-pruning (extra prune)")
    torch.manual_seed(11)
    module = make(kind, pl)
    trainer = pl.Trainer(**quiet, fast_dev_run=batches, callbacks=[callback])
    trainer.fit(module, images(), images(8, shuffle=False))
    assert trainer.global_step == int(batches)
    assert all(bool(torch.isfinite(value).all()) for value in module.state_dict().values())
    return callback, module


@pytest.mark.parametrize("batches", [True, 3])
@pytest.mark.parametrize("name", CASES)
def test_it_goes_through(name: str, batches: int | bool, quiet: dict[str, Any]) -> None:
    dry(CASES[name], batches, quiet)


@pytest.mark.parametrize("batches", [True, 3])
def test_what_is_left_out_is_said(batches: int | bool, quiet: dict[str, Any]) -> None:
    """Neither a cut nor a rewinding, in words; the masks are final, and the same callback would refuse so short a run."""
    pruning, module = dry(LONG["rewind_step"], batches, quiet)
    assert any("fast_dev_run is too short for rewind_to=5; nothing is rewound" in line for line in pruning.messages)
    assert pruning.result.total == pytest.approx(0.5, abs=0.01)
    channels, module = dry(LONG["channels"], batches, quiet)
    assert [line for line in channels.messages if "fast_dev_run" in line] == [
        "ChannelPruning: fast_dev_run is one epoch, too short for at=0.5, steps=1; nothing is cut in it."
    ]
    assert module.net[0].out_channels == 8
    steps, module = dry(LONG["channels_steps"], batches, quiet)
    assert any("only the first of them is cut" in line for line in steps.messages)
    assert sum("cut from" in line for line in steps.messages) == 1


def test_the_warm_up_is_shortened(quiet: dict[str, Any]) -> None:
    for name in ("warmup", "wsd", "own_warmup"):
        factory, _ = dry(LONG[name], 3, quiet)
        assert (
            f"OptimizerFactory: fast_dev_run is too short for warmup={factory.warmup}; it is 2 in it."
            in factory.messages
        )


def test_a_real_run_is_still_checked(quiet: dict[str, Any], pl: ModuleType) -> None:
    refused = (
        ("warmup", "warmup=1000 steps must be fewer"),
        ("rewind_step", "rewind_to=5 comes after"),
        ("channels", "needs 1 epochs that begin"),
    )
    for name, words in refused:
        with pytest.raises(ValueError, match=words):
            pl.Trainer(**quiet, max_epochs=1, callbacks=[LONG[name]()]).fit(make("plain", pl), images())


@pytest.fixture
def pl() -> ModuleType:
    import lightning.pytorch

    return lightning.pytorch
