"""Checkpoints of before a cut, loaded after it: the module grows back, in place, and is what a fresh one would be."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lightning_perf as lp
from lightning_perf.pruning.shapes import reshape, shapes_of
from tests.contract.modules import images, make
from tests.pruning.test_channels_resume import LOADER, assert_same, run, state_of

pytest.importorskip("torch_pruning", reason="needs torch-pruning (extra prune)")


@pytest.fixture
def pl() -> ModuleType:
    import lightning.pytorch

    return lightning.pytorch


def outputs(ns: ModuleType, module: Any) -> Tensor:
    module.eval()
    with torch.no_grad():
        return torch.cat([module(x) for x, _ in images(8, shuffle=False)])


def fresh(ns: ModuleType, path: Path) -> Any:
    """A plain module with the weights of a checkpoint of before the cut."""
    module = make("plain", ns)
    module.net[3].p = 0.0
    module.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    return module


def sizes(module: Any) -> list[str]:
    return [str(layer) for layer in module.net if not isinstance(layer, nn.Dropout)]


def assert_whole(ns: ModuleType, module: Any, path: Path) -> None:
    """Weights, outputs, attributes, and every parameter trains."""
    expected = fresh(ns, path)
    assert sizes(module) == sizes(expected)
    assert_same(dict(module.state_dict()), dict(expected.state_dict()))
    assert torch.equal(outputs(ns, module), outputs(ns, expected))
    x, _ = next(iter(images()))
    module(x).square().sum().backward()
    expected(x).square().sum().backward()
    for (name, one), other in zip(module.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad), name


def test_what_was_cut_grows_back_in_place() -> None:
    """Layouts, identities, sizes; and shrinks again."""
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    small = {
        "tensors": {"0.weight": [2, 2, 3, 3], "0.bias": [2], "1.weight": [2], "1.bias": [2], "1.running_mean": [2]},
        "sizes": {"0": {"out_channels": 2}, "1": {"num_features": 2}},
    }
    small["tensors"]["1.running_var"] = [2]
    weight, before, whole = net[0].weight, str(net), {name: one.shape for name, one in net.state_dict().items()}
    reshape(net, small)
    assert shapes_of(net) == small
    reshape(net, {"tensors": {"0.weight": [3, 2, 3, 3]}, "sizes": {"0": {"out_channels": 3}}})
    assert (tuple(net[0].weight.shape), net[0].out_channels, net[1].num_features) == ((3, 2, 3, 3), 3, 4)
    reshape(net, {"tensors": {}, "sizes": {}})
    assert {name: one.shape for name, one in net.state_dict().items()} == whole
    assert str(net) == before
    assert net[0].weight is weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match=r"0\.weight is \(5, 2, 3, 3\) there and of shape \(4, 2, 3, 3\) here"):
        reshape(net, {"tensors": {"0.weight": [5, 2, 3, 3]}, "sizes": {}})


@pytest.mark.parametrize("kind", ["plain", "manual"])
def test_evaluated_from_before_the_cut(kind: str, ns: ModuleType, quiet: dict[str, Any], tmp_path: Path) -> None:
    """``test``, ``validate`` and ``predict`` on the Trainer that has cut, to and fro between the two states."""
    trainer, module, pruning = run(ns, quiet, kind, tmp_path, {})
    before, behind, x = tmp_path / "step=8.ckpt", tmp_path / "step=24.ckpt", images(8, shuffle=False)
    small = str(module.net)
    parameters = list(module.parameters())
    plain = ns.Trainer(**quiet)
    expected = plain.test(fresh(ns, before), x, verbose=False), plain.validate(fresh(ns, before), x, verbose=False)
    assert trainer.test(module, x, ckpt_path=before, verbose=False) == expected[0]
    assert (
        "ChannelPruning: the checkpoint is of before the first cut, and the module has the channels back"
        in (pruning.messages[-1])
    )
    assert_whole(ns, module, before)
    assert trainer.validate(module, x, ckpt_path=behind, verbose=False) != expected[1]
    assert str(module.net) == small
    assert trainer.validate(module, x, ckpt_path=before, verbose=False) == expected[1]
    trainer.test(module, x, ckpt_path=behind, verbose=False)
    assert torch.equal(torch.cat(trainer.predict(module, x, ckpt_path=before)), outputs(ns, fresh(ns, before)))
    assert all(one is other for one, other in zip(module.parameters(), parameters, strict=True))


def test_the_best_is_of_before_the_cut(ns: ModuleType, quiet: dict[str, Any], tmp_path: Path) -> None:
    """``trainer.test()`` alone loads it; so does another Trainer with another callback, and one after ``load_pruned``."""
    module, x = make("plain", ns), images(8, shuffle=False)

    def validation_step(self: Any, batch: Any, batch_idx: int) -> None:
        self.log("rising", float(self.trainer.global_step))

    own = {"validation_step": validation_step, "test_dataloader": lambda self: x}
    module.__class__ = type("Rising", (type(module),), own)
    best = ns.callbacks.ModelCheckpoint(tmp_path, monitor="rising", mode="min")
    settings = {**quiet, "enable_checkpointing": True, "max_epochs": 2}
    trainer = ns.Trainer(**settings, callbacks=[best, lp.ChannelPruning(0.6, round_to=2)])
    trainer.fit(module, images(), x)
    assert module.net[0].out_channels < 8
    path = Path(best.best_model_path)
    trainer.test(verbose=False)
    assert_whole(ns, module, path)
    trainer.fit_loop.max_epochs = 4
    trainer.fit(module, images(), x)
    assert module.net[0].out_channels < 8
    trainer.save_checkpoint(tmp_path / "small.ckpt")
    other = ns.Trainer(**quiet, callbacks=[lp.ChannelPruning(0.5)])
    other.test(module, x, ckpt_path=path, verbose=False)
    assert_whole(ns, module, path)
    loaded = lp.load_pruned(make("plain", ns), tmp_path / "small.ckpt")
    other.test(loaded, x, ckpt_path=path, verbose=False)
    assert_whole(ns, loaded, path)


@pytest.mark.parametrize(
    ("kind", "options"), [("plain", {}), ("scheduled", {"steps": 2}), ("plain", {"steps": 2, "regularize": 1e-2})]
)
def test_a_fit_goes_on_from_before_the_cut(
    kind: str, options: dict[str, Any], ns: ModuleType, quiet: dict[str, Any], tmp_path: Path
) -> None:
    """The same Trainer and module, which are small by now, end as a fresh one does from that checkpoint: cut anew."""
    trainer, module, pruning = run(ns, quiet, kind, tmp_path, options)
    for step in (8, 16, 4):
        path = tmp_path / f"step={step}.ckpt"
        expected = state_of(*run(ns, quiet, kind, tmp_path / "fresh", options, ckpt_path=path))
        trainer.callbacks[-1].dirpath = str(tmp_path / "again")
        trainer.fit(module, LOADER, ckpt_path=path)
        assert_same(state_of(trainer, module, pruning), expected)


def test_between_two_cuts_and_weights_alone(pl: ModuleType, quiet: dict[str, Any], tmp_path: Path) -> None:
    """Weights without callback state load into every state that the run went through."""
    trainer, module, pruning = run(pl, quiet, "plain", tmp_path, {"steps": 2})
    x = images(8, shuffle=False)
    for step in (16, 8, 20, 16):
        expected = torch.load(tmp_path / f"step={step}.ckpt", weights_only=True)
        for name, content in (("full", expected), ("weights", {**expected, "callbacks": {}})):
            torch.save(content, tmp_path / name)
            trainer.test(module, x, ckpt_path=tmp_path / "step=24.ckpt", verbose=False)
            trainer.test(module, x, ckpt_path=tmp_path / name, verbose=False)
            assert_same(dict(module.state_dict()), expected["state_dict"])
            state = state_of(trainer, module, pruning)["pruning"]
            assert (state["done"], state["left"]) == tuple(
                expected["callbacks"][pruning.state_key][key] for key in ("done", "left")
            )
            if step > 8:
                again = lp.load_pruned(make("plain", pl), expected)
                assert sizes(again) == sizes(module)


@pytest.mark.parametrize("average", ["ema", "lightning"])
def test_averages_and_masks(average: str, pl: ModuleType, quiet: dict[str, Any], tmp_path: Path) -> None:
    """They are of other shapes as well: evaluation takes the average that was saved, a further fit goes through."""
    if average == "lightning" and not hasattr(pl.callbacks, "EMAWeightAveraging"):
        pytest.skip("this release of Lightning has no EMAWeightAveraging")
    averages = lp.OptimizerFactory(ema=0.9) if average == "ema" else pl.callbacks.EMAWeightAveraging(decay=0.9)
    masks = lp.MagnitudePruning(0.5, start=0.0, end=0.9)
    trainer, module, _ = run(pl, quiet, "plain", tmp_path, {}, averages, masks)
    before, x = tmp_path / "step=8.ckpt", images(8, shuffle=False)
    expected = pl.Trainer(**quiet).validate(fresh(pl, before), x, verbose=False)
    assert trainer.validate(module, x, ckpt_path=before, verbose=False) == expected
    if average == "ema":  # Lightning's goes on with the weights beside the average
        assert_whole(pl, module, before)
    assert module.net[0].out_channels == 8
    trainer.fit_loop.max_epochs = 6
    trainer.fit(module, LOADER)
    assert module.net[0].out_channels < 8
    trainer.fit_loop.max_epochs = 8
    trainer.fit(module, LOADER, ckpt_path=before)
    assert module.net[0].out_channels < 8


def test_a_raw_optimizer_forgets_what_has_other_shapes(pl: ModuleType, quiet: dict[str, Any], tmp_path: Path) -> None:
    """One that the module has made for good goes on stepping after both."""
    module = make("raw_step", pl)
    module.raw = torch.optim.Adam(module.net.parameters(), lr=1e-2)

    def training_step(self: Any, batch: Any, batch_idx: int) -> None:
        loss = self.loss(batch)[0]
        self.raw.zero_grad()
        self.manual_backward(loss)
        self.raw.step()

    module.__class__ = type("ByHand", (type(module),), {"training_step": training_step})
    pruning = lp.ChannelPruning(0.6, round_to=2, at=0.5)

    class Save(pl.Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            trainer.save_checkpoint(tmp_path / f"{trainer.current_epoch}.ckpt")

    trainer = pl.Trainer(**{**quiet, "max_epochs": 2}, callbacks=[pruning, Save()])
    trainer.fit(module, images(), images(8, shuffle=False))
    assert module.net[0].out_channels < 8
    trainer.test(module, images(8, shuffle=False), ckpt_path=tmp_path / "0.ckpt", verbose=False)
    assert module.net[0].out_channels == 8
    trainer.fit_loop.max_epochs = 4
    trainer.fit(module, images(), images(8, shuffle=False))
    assert module.net[0].out_channels < 8


def test_what_is_in_no_checkpoint_stays(pl: ModuleType, quiet: dict[str, Any], tmp_path: Path) -> None:
    """A frozen part that the module leaves out of its state could not be loaded in the shapes it was left with."""
    module = make("plain", pl)
    module.strict_loading = False
    base = type(module)

    def state_dict(self: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        state = base.state_dict(self, *args, **kwargs)
        return {name: value for name, value in state.items() if not name.startswith("net.0")}

    module.__class__ = type("Frozen", (base,), {"state_dict": state_dict})
    pruning = lp.ChannelPruning(0.8, round_to=2)
    trainer = pl.Trainer(**{**quiet, "max_epochs": 2}, callbacks=[pruning])
    trainer.fit(module, images(), images(8, shuffle=False))
    assert "net.0.weight is in no checkpoint, so that none could tell what is left of it" in pruning.left_out["net.0"]
    assert module.net[0].out_channels == 8
    assert module.net[4].out_channels < 8
