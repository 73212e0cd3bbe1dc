"""Pruning and quantization-aware training in one run, in either order: zeros stay zeros in int8, also after a resume."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import lightning_perf as lp
from lightning_perf.quantization import folded_float, to_qdq
from tests.contract.modules import images, make

TOTAL = 8 * 9 + 8 * 8 * 9 + 3 * 8 * 16  # weights of the plain module


def weights(net: nn.Module) -> list[torch.Tensor]:
    return [net.get_parameter(f"net.{index}.weight") for index in (0, 4, 7)]


def fit(ns: ModuleType, quiet: dict[str, Any], folder: Path, first: str, ckpt_path: str | None = None) -> Any:
    """Three epochs of six batches, sparser from the third batch to the thirteenth; a checkpoint after each epoch."""
    pruning, training = lp.MagnitudePruning(0.5, start=0.1, end=0.7), lp.QuantizationAwareTraining("int8")
    both = [pruning, training] if first == "pruning" else [training, pruning]
    saver = ns.callbacks.ModelCheckpoint(folder, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    module = make("plain", ns)
    torch.manual_seed(11 if ckpt_path is None else 12)
    settings = {**quiet, "max_epochs": 3, "enable_checkpointing": True}
    trainer = ns.Trainer(**settings, callbacks=[*both, lp.ExactResume(), saver])
    trainer.fit(module, images(), images(8, shuffle=False), ckpt_path=ckpt_path)
    return module


@pytest.mark.parametrize("first", ["pruning", "quantization"])
def test_zeros_are_zeros_in_int8_and_after_a_resume(
    first: str, ns: ModuleType, quiet: dict[str, Any], tmp_path: Path
) -> None:
    whole = fit(ns, quiet, tmp_path / "a", first)
    gone = [weight == 0 for weight in weights(whole)]
    assert sum(int(mask.sum()) for mask in gone) == TOTAL // 2
    integers, folded = to_qdq(whole), folded_float(whole)
    for index, mask, weight in zip((0, 4, 7), gone, weights(whole), strict=True):
        stored, rounded = integers.get_buffer(f"net.{index}.weight_int8"), folded.get_parameter(f"net.{index}.weight")
        assert bool((stored[mask] == 0).all())
        assert bool((rounded[mask] == 0).all())
        assert int((stored == 0).sum()) < weight.numel()  # and not because nothing is left
    middle = torch.load(tmp_path / "a" / "epoch=0.ckpt", weights_only=True)["state_dict"]
    before = sum(int((middle[f"net.{index}.weight"] == 0).sum()) for index in (0, 4, 7))
    assert 0 < before < TOTAL // 2
    resumed = fit(ns, quiet, tmp_path / "b", first, str(tmp_path / "a" / "epoch=0.ckpt"))
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    again = to_qdq(resumed).state_dict()
    assert all(torch.equal(again[name], value) for name, value in integers.state_dict().items())


def test_the_order_of_the_two_does_not_matter(pl_states: list[dict[str, torch.Tensor]]) -> None:
    one, other = pl_states
    assert all(torch.equal(other[name], value) for name, value in one.items())


@pytest.fixture
def pl_states(quiet: dict[str, Any], tmp_path: Path) -> list[dict[str, torch.Tensor]]:
    import lightning.pytorch as pl

    return [fit(pl, quiet, tmp_path / first, first).state_dict() for first in ("pruning", "quantization")]
