"""Averages of weights that somebody keeps beside the module are cut along, whoever keeps them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import lightning_perf as lp
from tests.contract.modules import images, make
from tests.pruning.test_channels import fit, with_dead_channels

pytest.importorskip("torch_pruning", reason="needs torch-pruning (extra prune)")


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("average", ["ema", "auto", "lightning", "swa"])
def test_the_saved_average_is_that_of_the_run_without_a_cut(
    average: str, first: bool, quiet: dict[str, Any], tmp_path: Path
) -> None:
    """Four epochs with dead channels, which are taken out before the third: the average computes the same without them."""
    import lightning.pytorch as pl

    if average == "lightning" and not hasattr(pl.callbacks, "EMAWeightAveraging"):
        pytest.skip("this release of Lightning has no EMAWeightAveraging")
    averages: dict[str, Callable[[], Any]] = {
        "ema": lambda: lp.OptimizerFactory(ema=0.9),
        "auto": lambda: lp.OptimizerFactory("auto", lr=1e-2),
        "lightning": lambda: pl.callbacks.EMAWeightAveraging(decay=0.9),
        "swa": lambda: pl.callbacks.StochasticWeightAveraging(1e-2, swa_epoch_start=1),
    }

    def run(ns: ModuleType, prunes: bool) -> Any:
        module = with_dead_channels(ns)
        weights = sum(p.numel() for p in module.parameters())
        dead = 2 * (9 + 2) + 2 * 72 + 2 * 6 * 9 + 2 + 3 * 2 * 16
        pruning = [lp.ChannelPruning((weights - dead) / weights + 1e-6, measure="parameters", round_to=2)]
        callbacks = [averages[average](), *(pruning if prunes else [])]
        trainer = fit(ns, quiet, callbacks if first else callbacks[::-1], module, max_epochs=4)
        trainer.save_checkpoint(tmp_path / "c.ckpt")
        checkpoint = torch.load(tmp_path / "c.ckpt", weights_only=True)
        assert sum(p.numel() for p in module.parameters()) == weights - dead * prunes
        fresh = make("plain", ns)
        if prunes:
            return lp.load_pruned(fresh, checkpoint).eval()
        fresh.load_state_dict(checkpoint["state_dict"])
        return fresh.eval()

    x = next(iter(images(8, shuffle=False)))[0]
    whole, cut = run(pl, False), run(pl, True)
    torch.testing.assert_close(cut(x), whole(x), rtol=1e-4, atol=1e-5)
