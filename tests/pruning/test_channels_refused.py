"""What ChannelPruning refuses, in words, and checkpoints that do not fit."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import lightning_perf as lp
from lightning_perf.host import MisconfigurationException
from lightning_perf.host.namespaces import DoorClosed
from tests.contract.modules import images, make
from tests.pruning.test_channels import fit

pytest.importorskip("torch_pruning", reason="needs torch-pruning (extra prune)")


def test_compiled_as_a_whole(ns: ModuleType, quiet: dict[str, Any]) -> None:
    """``fit(torch.compile(module))``, which Lightning takes apart again: the module's own steps are compiled."""
    compiled = torch.compile(make("plain", ns), backend="eager")
    with pytest.raises(MisconfigurationException, match="Plain is compiled for its shapes; use ChannelPruning without"):
        fit(ns, quiet, [lp.ChannelPruning(0.5, round_to=2)], compiled)


@pytest.mark.parametrize("strategy", ["FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy"])
@pytest.mark.parametrize("pruning", [lp.ChannelPruning(0.5, round_to=2), lp.MagnitudePruning(0.5)], ids=type)
def test_sharded(pruning: Any, strategy: str, quiet: dict[str, Any]) -> None:
    """By name, with what to use instead (the strategies are faked)."""
    import lightning.pytorch as pl

    base = pl.strategies.SingleDeviceStrategy
    fake = type(strategy, (base,), {"__module__": base.__module__, "restore_checkpoint_after_setup": True})
    with pytest.raises(DoorClosed, match=f"{strategy}.*use a single device or DDP"):
        fit(pl, quiet, [pruning], make("plain", pl), strategy=fake("cpu"))


def test_two_prunings(ns: ModuleType, quiet: dict[str, Any]) -> None:
    with pytest.raises(MisconfigurationException, match=r"ChannelPruning\(target=0\.6.*both cut the module; use one"):
        fit(ns, quiet, [lp.ChannelPruning(0.6, round_to=2), lp.ChannelPruning(0.5, round_to=2)], make("plain", ns))
    lightnings = ns.callbacks.ModelPruning("l1_unstructured", amount=0.5)
    with pytest.raises(MisconfigurationException, match="ModelPruning of Lightning replaces the weights"):
        fit(ns, quiet, [lp.ChannelPruning(0.6, round_to=2), lightnings], make("plain", ns))


def test_ignored(ns: ModuleType, quiet: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="ignore='head' matches no parameter and no module of Plain"):
        fit(ns, quiet, [lp.ChannelPruning(0.6, round_to=2, ignore=["head"])], make("plain", ns))
    with pytest.raises(
        ValueError, match=r"no group of channels can be cut; left out: .*ignored by 'net'.*Use a smaller"
    ):
        fit(ns, quiet, [lp.ChannelPruning(0.6, round_to=2, ignore=["net"])], make("plain", ns))
    pruning = lp.ChannelPruning(0.8, round_to=2, ignore=["net.0"])
    module = make("plain", ns)
    fit(ns, quiet, [pruning], module)
    assert module.net[0].out_channels == 8
    assert module.net[4].out_channels < 8


def test_the_best_point_is_named(ns: ModuleType, quiet: dict[str, Any]) -> None:
    """What is left with two channels a group, counted: 2*9*64 + 2*2*9*16 + 32*3 of 8*9*64 + 8*8*9*16 + 128*3 products."""
    best = (2 * 9 * 64 + 2 * 2 * 9 * 16 + 32 * 3) / (8 * 9 * 64 + 8 * 8 * 9 * 16 + 128 * 3)
    words = rf"target=0\.01 cannot be met: .* it is {best:.3g}\. Left out: net\.7: 3 channels.* Pass a higher target"
    with pytest.raises(ValueError, match=words):
        fit(ns, quiet, [lp.ChannelPruning(0.01, round_to=2)], make("plain", ns))


def pruned(ns: ModuleType, quiet: dict[str, Any], path: Path) -> Any:
    module = make("plain", ns)
    trainer = fit(ns, quiet, [lp.ChannelPruning(0.6, round_to=2)], module)
    trainer.save_checkpoint(path)
    return trainer, module


def test_validate_and_test_load_the_shapes(ns: ModuleType, quiet: dict[str, Any], tmp_path: Path) -> None:
    """Into a module as it was before the cut; the file stays as it is."""
    trainer, module = pruned(ns, quiet, tmp_path / "c.ckpt")
    before = (tmp_path / "c.ckpt").read_bytes()
    for name in ("validate", "test"):
        expected = getattr(trainer, name)(module, images(8, shuffle=False), verbose=False)
        again = ns.Trainer(**quiet, callbacks=[lp.ChannelPruning(0.5)])
        fresh = make("plain", ns)
        found = getattr(again, name)(fresh, images(8, shuffle=False), ckpt_path=tmp_path / "c.ckpt", verbose=False)
        assert found == expected
        assert str(fresh.net) == str(module.net)
    lp.load_pruned(make("plain", ns), tmp_path / "c.ckpt")
    assert (tmp_path / "c.ckpt").read_bytes() == before


def test_fit_goes_on_from_the_small_module(ns: ModuleType, quiet: dict[str, Any], tmp_path: Path) -> None:
    """Another epoch from a checkpoint behind the cut: no second cut, the optimizer's state has the small shapes."""
    _, module = pruned(ns, quiet, tmp_path / "c.ckpt")
    fresh, pruning = make("plain", ns), lp.ChannelPruning(0.6, round_to=2)
    trainer = fit(ns, quiet, [pruning], fresh, max_epochs=3, ckpt_path=tmp_path / "c.ckpt")
    assert trainer.global_step == 18
    assert str(fresh.net) == str(module.net)
    assert not any("cut from" in line for line in pruning.messages)
    state = trainer.optimizers[0].state
    assert all(state[p]["exp_avg"].shape == p.shape for p in fresh.parameters())


def test_a_checkpoint_of_other_shapes(ns: ModuleType, quiet: dict[str, Any], tmp_path: Path) -> None:
    """A module with fewer channels than are left there, and one without the layer: refused before a weight is touched."""
    pruned(ns, quiet, tmp_path / "c.ckpt")
    narrow = make("plain", ns)
    narrow.net[0], narrow.net[1] = nn.Conv2d(1, 2, 3, padding=1, bias=False), nn.BatchNorm2d(2)
    narrow.net[4] = nn.Conv2d(2, 8, 3, stride=2, padding=1)
    with pytest.raises(
        ValueError, match=r"those of another module: net\.0\.weight is .* there and of shape \(2, 1, 3, 3\)"
    ):
        fit(ns, quiet, [lp.ChannelPruning(0.6, round_to=2)], narrow, ckpt_path=tmp_path / "c.ckpt")
    assert narrow.net[0].weight.shape == (2, 1, 3, 3)
    headless = make("plain", ns)
    headless.net[7] = nn.Identity()
    with pytest.raises(ValueError, match=r"net\.7\.weight is .* there and missing here"):
        lp.load_pruned(headless, tmp_path / "c.ckpt")
    assert headless.net[4].weight.shape == (8, 8, 3, 3)


def test_a_checkpoint_of_an_older_version(pl: ModuleType, quiet: dict[str, Any], tmp_path: Path) -> None:
    """Training cannot go on from it, in words; the weights can be had."""
    _, module = pruned(pl, quiet, tmp_path / "c.ckpt")
    checkpoint = torch.load(tmp_path / "c.ckpt", weights_only=True)
    (state,) = (state for key, state in checkpoint["callbacks"].items() if key.startswith("ChannelPruning"))
    del state["left"]
    torch.save(checkpoint, tmp_path / "old.ckpt")
    with pytest.raises(ValueError, match=r"saved by an older version.*load_pruned"):
        fit(pl, quiet, [lp.ChannelPruning(0.6, round_to=2)], make("plain", pl), ckpt_path=tmp_path / "old.ckpt")
    loaded = lp.load_pruned(make("plain", pl), tmp_path / "old.ckpt")
    assert torch.equal(loaded.net[0].weight, module.net[0].weight)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cut_on_a_gpu(pl: ModuleType, quiet: dict[str, Any]) -> None:
    """Channels go there as on the CPU."""
    module = make("plain", pl)
    pruning = lp.ChannelPruning(0.6, round_to=2)
    fit(pl, {**quiet, "accelerator": "gpu", "devices": 1}, [pruning], module)
    assert any("cut from" in line for line in pruning.messages)


def test_objects_in_a_checkpoint(pl: ModuleType, quiet: dict[str, Any], tmp_path: Path) -> None:
    """Some packages keep objects of their own in hyperparameters: not unpickled, unless the user has done it."""
    _, module = pruned(pl, quiet, tmp_path / "c.ckpt")
    checkpoint = torch.load(tmp_path / "c.ckpt", weights_only=True)
    torch.save({**checkpoint, "hyper_parameters": {"of": Path("theirs")}}, tmp_path / "c.ckpt")
    with pytest.raises(ValueError, match=r"objects of other packages.*pass torch\.load\(path, weights_only=False\)"):
        lp.load_pruned(make("plain", pl), tmp_path / "c.ckpt")
    small = lp.load_pruned(make("plain", pl), torch.load(tmp_path / "c.ckpt", weights_only=False))
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in small.state_dict().items())
    with pytest.raises(ValueError, match="the checkpoint holds no shapes"):
        lp.load_pruned(make("plain", pl), {"state_dict": checkpoint["state_dict"]})


@pytest.fixture
def pl() -> ModuleType:
    import lightning.pytorch

    return lightning.pytorch


def with_step(ns: ModuleType, step: Any) -> Any:
    module = make("plain", ns)
    base = type(module)
    module.__class__ = type("Own", (base,), {"training_step": lambda self, batch: base.training_step(self, batch, 0)})
    if step is not None:
        module.__class__ = type("Own", (base,), {"training_step": step})
    return module


def test_a_step_without_an_index_is_traced(ns: ModuleType, quiet: dict[str, Any]) -> None:
    """Lightning lets ``training_step(self, batch)`` be."""
    module, plain = with_step(ns, None), make("plain", ns)
    for one in (module, plain):
        fit(ns, quiet, [lp.ChannelPruning(0.6, round_to=2)], one)
    assert str(module.net) == str(plain.net)
    assert module.losses == plain.losses


def test_a_step_that_draws_its_batches(ns: ModuleType, quiet: dict[str, Any]) -> None:
    """There is no batch before the step."""

    def training_step(self: Any, dataloader_iter: Any) -> Any:
        batch, _, _ = next(dataloader_iter)
        return self.loss(batch)[0]

    with pytest.raises(
        MisconfigurationException, match=r"Own\.training_step takes its batches from dataloader_iter.*use"
    ):
        fit(ns, quiet, [lp.ChannelPruning(0.6, round_to=2)], with_step(ns, training_step))
