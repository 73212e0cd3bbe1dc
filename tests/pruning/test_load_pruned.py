"""``load_pruned`` loads as ``LightningModule.load_from_checkpoint`` does: hook, strictness, warnings, model made late."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import lightning_perf as lp
from tests.contract.modules import images, make

SHAPES = {"tensors": {"net.0.weight": [3, 2], "net.1.weight": [1, 3]}, "sizes": {"net.0": {"out_features": 3}}}
WEIGHTS = {"net.0.weight": torch.arange(6.0).view(3, 2), "net.1.weight": torch.ones(1, 3), "net.1.bias": torch.ones(1)}
EXTRA = {**WEIGHTS, "extra": torch.tensor(7.0)}


def checkpoint_of(weights: dict[str, Any], path: Path) -> Path:
    state = {"callbacks": {"ChannelPruning{}": {"shapes": SHAPES}}, "state_dict": weights, "note": {"scale": 2.0}}
    torch.save(state, path)
    return path


def small(ns: ModuleType) -> type:
    class Small(ns.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(2, 4, bias=False), nn.Linear(4, 1))

    return Small


def test_the_hook_sees_the_checkpoint_before_the_weights_are_loaded(ns: ModuleType, tmp_path: Path) -> None:
    """It may rename keys, and what it changes is not what the caller holds."""

    class Hooked(small(ns)):  # type: ignore[misc]
        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            shapes.append(tuple(self.net[0].weight.shape))
            self.scale = checkpoint.pop("note")["scale"] * float(checkpoint["state_dict"].pop("extra"))
            checkpoint["state_dict"]["net.0.weight"] = checkpoint["state_dict"].pop("old.0.weight") + 1

    shapes: list[tuple[int, ...]] = []
    old = {("old.0.weight" if name == "net.0.weight" else name): value for name, value in EXTRA.items()}
    path = checkpoint_of(old, tmp_path / "c.ckpt")
    held = torch.load(path, weights_only=True)
    for source in (path, held, held):
        module = lp.load_pruned(Hooked(), source)
        assert module.scale == 14.0
        assert torch.equal(module.net[0].weight, WEIGHTS["net.0.weight"] + 1)
    assert shapes == [(3, 2)] * 3
    assert list(held["state_dict"]) == list(old)
    assert "note" in held


def test_strict_loading_of_the_module(ns: ModuleType, tmp_path: Path) -> None:
    path = checkpoint_of({k: v for k, v in EXTRA.items() if k != "net.1.bias"}, tmp_path / "c.ckpt")
    module = small(ns)()
    with pytest.raises(RuntimeError, match="extra"):
        lp.load_pruned(module, path)
    module = small(ns)()
    module.strict_loading = False
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        lp.load_pruned(module, path)
    lines = [str(one.message) for one in warned]
    assert any("not in the checkpoint" in line and "net.1.bias" in line for line in lines)
    assert any("not in the module" in line and "extra" in line for line in lines)
    assert torch.equal(module.net[0].weight, WEIGHTS["net.0.weight"])
    with pytest.raises(ValueError, match=r"net\.1\.weight was cut, and is not in the checkpoint"):
        lp.load_pruned(
            module, checkpoint_of({k: v for k, v in WEIGHTS.items() if k != "net.1.weight"}, tmp_path / "d.ckpt")
        )


def test_a_model_that_is_made_in_configure_model(ns: ModuleType, quiet: dict[str, Any], tmp_path: Path) -> None:
    class Late(type(make("plain", ns))):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.late, self.net = self.net, None

        def configure_model(self) -> None:
            if self.net is None:
                self.net, self.late = self.late, None

    torch.manual_seed(3)
    module = Late()
    trainer = ns.Trainer(**quiet, max_epochs=2, callbacks=[lp.ChannelPruning(0.6, round_to=2)])
    trainer.fit(module, images())
    trainer.save_checkpoint(tmp_path / "c.ckpt")
    loaded = lp.load_pruned(Late(), tmp_path / "c.ckpt")
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in module.state_dict().items())
