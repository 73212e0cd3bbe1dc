"""Averaged weights in a fit: seen wherever it evaluates and saves, never by training; resume, exceptions, neighbours."""

from __future__ import annotations

import copy
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import lightning_perf as lp
from lightning_perf.host import MisconfigurationException, dry_passes
from lightning_perf.optim.batch_norm import forget_statistics, statistics_from
from tests.contract.modules import images, make
from tests.optim.literal_schedule_free import LiteralScheduleFreeSGD

WAYS = ("schedule_free", "ema", "auto")
ways = pytest.mark.parametrize("way", WAYS)


def factory(way: str) -> lp.OptimizerFactory:
    """Averaging by the module's own optimizer, by a moving average of ours, or by an optimizer of ours."""
    if way == "auto":
        return lp.OptimizerFactory("auto", warmup=2)
    return lp.OptimizerFactory() if way == "schedule_free" else lp.OptimizerFactory(ema=0.9)


def module_for(way: str, ns: ModuleType, kind: str = "plain") -> Any:
    base = type(make(kind, ns))

    class Own(base):  # type: ignore[misc, valid-type]
        def configure_optimizers(self) -> Any:
            if way == "schedule_free":
                return LiteralScheduleFreeSGD(self.parameters(), lr=0.05)
            return super().configure_optimizers()

    torch.manual_seed(3)
    return Own()


def quiet_loader() -> DataLoader:
    """Eight images; the iterator draws from a generator of its own, as each DataLoader draws a seed for workers."""
    return DataLoader(images(8, shuffle=False).dataset, batch_size=4, generator=torch.Generator())


def flat(module: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def fit(
    ns: ModuleType, quiet: dict[str, Any], way: str, callbacks: list[Any], *, module: Any = None, **arguments: Any
) -> tuple[Any, Any]:
    module = module if module is not None else module_for(way, ns)
    torch.manual_seed(11)
    ckpt_path, loader, train = arguments.pop("ckpt_path", None), quiet_loader(), arguments.pop("train", None)
    saves = any("Checkpoint" in type(callback).__name__ for callback in callbacks)
    settings = {**quiet, "max_epochs": 2, "enable_checkpointing": saves, **arguments}
    trainer = ns.Trainer(**settings, callbacks=callbacks)
    trainer.fit(module, train if train is not None else images(), loader, ckpt_path=ckpt_path)
    return trainer, module


@pytest.fixture
def reference(ns: ModuleType, quiet: dict[str, Any]) -> Any:
    """The training and the averaged weights after every step of a run that never evaluates, computed naively."""

    def run(way: str, epochs: int = 2) -> tuple[list[torch.Tensor], list[torch.Tensor], list[float]]:
        trained, averaged = [], []

        class Watch(ns.Callback):
            def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
                y = flat(pl_module)
                trained.append(y.clone())
                if way == "ema":
                    share = max(0.1, 9 / (len(trained) + 8))
                    averaged.append(y.clone() if len(trained) == 1 else averaged[-1].lerp(y, share))
                else:
                    x = {id(p): x for p, x in trainer.strategy.optimizers[0].evaluation_weights()}
                    averaged.append(torch.cat([x[id(p)].flatten() for p in pl_module.parameters()]))

        # The same fused kernels as in the runs with the factory.
        callbacks = [*([lp.OptimizerFactory()] if way == "ema" else []), Watch()]
        callbacks = [factory("auto"), Watch()] if way == "auto" else callbacks
        _, module = fit(ns, quiet, way, callbacks, limit_val_batches=0, max_epochs=epochs)
        return trained, averaged, module.losses

    return run


@ways
def test_evaluating_after_every_step_changes_nothing(
    way: str, ns: ModuleType, quiet: dict[str, Any], reference: Any
) -> None:
    trained, averaged, losses = reference(way)
    often = factory(way)
    trainer, module = fit(ns, quiet, way, [often], val_check_interval=1, num_sanity_val_steps=2)
    assert module.losses == losses
    assert torch.equal(flat(module), averaged[-1])
    assert not torch.equal(averaged[-1], trained[-1])
    checkpoint: dict[str, Any] = {}
    often.on_save_checkpoint(trainer, module, checkpoint)
    (state,) = checkpoint["callbacks"].values()
    assert torch.equal(torch.cat([w.flatten() for w in state["training_weights"].values()]), trained[-1])


@ways
def test_who_sees_which_weights(way: str, ns: ModuleType, quiet: dict[str, Any], reference: Any) -> None:
    """Hooks of callbacks before and after ours and of the module itself: averaged in evaluation, trained in training."""
    trained, averaged, _ = reference(way)
    initial = flat(module_for(way, ns))
    seen: list[tuple[str, int, torch.Tensor]] = []

    class Watch(ns.Callback):
        def __init__(self, name: str) -> None:
            self.name = name

        @property
        def state_key(self) -> str:
            return self.name

        def look(self, hook: str, trainer: Any, module: Any) -> None:
            seen.append((hook, trainer.global_step, flat(module).clone()))

        def on_sanity_check_start(self, trainer: Any, module: Any) -> None:
            self.look("training", trainer, module)

        def on_train_batch_start(self, trainer: Any, module: Any, *_: Any) -> None:
            self.look("training", trainer, module)

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            self.look("training", trainer, module)

        def on_validation_start(self, trainer: Any, module: Any) -> None:
            self.look("evaluation", trainer, module)

        def on_validation_epoch_start(self, trainer: Any, module: Any) -> None:
            self.look("evaluation", trainer, module)

        def on_validation_end(self, trainer: Any, module: Any) -> None:
            self.look("evaluation", trainer, module)

        def on_train_end(self, trainer: Any, module: Any) -> None:
            self.look("evaluation", trainer, module)

        def on_fit_end(self, trainer: Any, module: Any) -> None:
            self.look("evaluation", trainer, module)

    base = type(module_for(way, ns))

    class Own(base):  # type: ignore[misc, valid-type]
        def on_validation_start(self) -> None:
            seen.append(("evaluation", self.trainer.global_step, flat(self).clone()))

        def on_validation_model_eval(self) -> None:
            super().on_validation_model_eval()
            seen.append(("evaluation", self.trainer.global_step, flat(self).clone()))

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            seen.append(("evaluation", self.trainer.global_step, flat(self).clone()))

        def on_train_end(self) -> None:
            seen.append(("evaluation", self.trainer.global_step, flat(self).clone()))

    torch.manual_seed(3)
    callbacks = [Watch("before"), factory(way), Watch("after")]
    fit(ns, quiet, way, callbacks, module=Own(), val_check_interval=2, num_sanity_val_steps=1)
    assert len(seen) > 70
    for kind, step, weights in seen:
        expected = (trained if kind == "training" else averaged)[step - 1] if step else initial
        assert torch.equal(weights, expected), (kind, step)


@ways
def test_every_kind_of_checkpoint(
    way: str, ns: ModuleType, quiet: dict[str, Any], reference: Any, tmp_path: Path
) -> None:
    """Mid-epoch, weights-only, after validation, at epoch end: averaged weights that load into the plain module."""
    _, averaged, _ = reference(way)
    saver = ns.callbacks.ModelCheckpoint
    kinds = {
        "mid": saver(tmp_path, "mid-{step}", every_n_train_steps=2, save_top_k=-1),
        "bare": saver(tmp_path, "bare-{step}", every_n_train_steps=3, save_top_k=-1, save_weights_only=True),
        "val": saver(tmp_path, "val-{step}", save_top_k=-1, monitor="val_loss"),
        "epoch": saver(tmp_path, "epoch-{step}", save_top_k=-1, save_on_train_epoch_end=True),
    }
    ours = factory(way)
    trainer, _ = fit(ns, quiet, way, [ours, *kinds.values()])
    trainer.save_checkpoint(tmp_path / "after-step=12.ckpt")
    assert any("save_weights_only=True" in line for line in ours.messages)
    files = sorted(tmp_path.glob("*.ckpt"))
    assert {path.name.split("-")[0] for path in files} == {*kinds, "after"}
    for path in files:
        step = int(path.stem.split("step=")[1])
        checkpoint = torch.load(path, weights_only=True)
        plain = make("plain", ns)
        plain.load_state_dict(checkpoint["state_dict"], strict=True)
        assert torch.equal(flat(plain), averaged[step - 1]), path.name


@ways
@pytest.mark.parametrize("when", ["epoch end", "after validation", "after fit"])
def test_resume_is_exact(way: str, when: str, ns: ModuleType, quiet: dict[str, Any], tmp_path: Path) -> None:
    """From the training weights, bit for bit; the sanity check of the resumed run sees the averaged ones."""

    def run(callbacks: list[Any], **arguments: Any) -> Any:
        module = module_for(way, ns)
        module.net[3].p = 0.0  # Lightning resumes no random state, and ExactResume only that of an epoch's end
        train = images(shuffle=False)
        return fit(ns, quiet, way, [factory(way), *callbacks], module=module, train=train, **arguments)

    at_epoch_end = when == "epoch end"
    saver = ns.callbacks.ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=at_epoch_end)
    _, whole = run([saver], max_epochs=3)
    path = tmp_path / "epoch=1.ckpt"
    if when == "after fit":
        trainer, _ = run([])
        path = tmp_path / "after.ckpt"
        trainer.save_checkpoint(path)
    sane: list[torch.Tensor] = []

    class Watch(ns.Callback):
        def on_validation_start(self, trainer: Any, module: Any) -> None:
            if trainer.sanity_checking:
                sane.append(flat(module).clone())

    trainer, resumed = run([Watch()], max_epochs=3, ckpt_path=path, num_sanity_val_steps=1)
    assert trainer.global_step == 18
    assert len(resumed.losses) == 6
    assert torch.equal(flat(resumed), flat(whole))
    assert all(torch.equal(a, b) for a, b in zip(resumed.buffers(), whole.buffers(), strict=True))
    saved = make("plain", ns)
    saved.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    assert all(torch.equal(weights, flat(saved)) for weights in sane)
    assert len(sane) == (when != "after validation")
    assert not any("weights in the checkpoint" in line for line in trainer.callbacks[0].messages)


@ways
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("hook", ["training_step", "validation_step"])
def test_exceptions(
    way: str, first: bool, hook: str, ns: ModuleType, quiet: dict[str, Any], reference: Any, tmp_path: Path
) -> None:
    """The module is left with averaged weights; the on-exception checkpoint has both; a second fit works."""
    trained, averaged, _ = reference(way)
    module = module_for(way, ns)
    original = getattr(module, hook)

    def bomb(batch: Any, batch_idx: int) -> Any:
        if module.trainer.global_step == 3:
            raise RuntimeError("planted")
        return original(batch, batch_idx)

    setattr(module, hook, bomb)
    keeper = ns.callbacks.OnExceptionCheckpoint(tmp_path, "crash")
    ours = factory(way)
    callbacks = [keeper, ours] if first else [ours, keeper]
    with pytest.raises(RuntimeError, match="planted"):
        fit(ns, quiet, way, callbacks, module=module, val_check_interval=1)
    assert torch.equal(flat(module), averaged[2])
    checkpoint = torch.load(tmp_path / "crash.ckpt", weights_only=True)
    plain = make("plain", ns)
    plain.load_state_dict(checkpoint["state_dict"], strict=True)
    assert torch.equal(flat(plain), averaged[2])
    (state,) = [s for key, s in checkpoint["callbacks"].items() if key.startswith("OptimizerFactory")]
    assert torch.equal(torch.cat([w.flatten() for w in state["training_weights"].values()]), trained[2])
    delattr(module, hook)
    start = flat(module).clone()
    seen: list[torch.Tensor] = []

    class Watch(ns.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            seen.append(flat(pl_module).clone())

    fit(ns, quiet, way, [ours, Watch()], module=module)
    assert torch.equal(seen[0], start)


@ways
def test_test_validate_predict(way: str, ns: ModuleType, quiet: dict[str, Any], reference: Any, tmp_path: Path) -> None:
    """Outside of fit nothing is exchanged: the module holds the averaged weights, or what was loaded."""
    _, averaged, _ = reference(way)
    saver = ns.callbacks.ModelCheckpoint(tmp_path, "{step}", save_top_k=-1)
    ours = factory(way)
    trainer, module = fit(ns, quiet, way, [ours, saver])
    for run in (trainer.validate, trainer.test):
        run(module, images(8, shuffle=False), verbose=False)
        assert torch.equal(flat(module), averaged[-1])
    trainer.predict(module, images(8, shuffle=False))
    trainer.test(module, images(8, shuffle=False), ckpt_path=tmp_path / "step=6.ckpt", verbose=False)
    assert torch.equal(flat(module), averaged[5])
    # The training weights of step 12 do not belong to these weights any more.
    trainer.save_checkpoint(tmp_path / "mixed.ckpt")
    again = factory(way)
    started: list[torch.Tensor] = []

    class Watch(ns.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            started.append(flat(pl_module).clone())

    fit(ns, quiet, way, [again, Watch()], ckpt_path=tmp_path / "mixed.ckpt", max_epochs=3)
    assert torch.equal(started[0], averaged[5])
    assert any("not those it was saved with" in line for line in again.messages)


@ways
def test_two_fits(way: str, ns: ModuleType, quiet: dict[str, Any]) -> None:
    """The second one starts from the averaged weights of the first, with new optimizer state and a new average."""
    ours, train = factory(way), images(shuffle=False)
    module, fresh = module_for(way, ns), module_for(way, ns)
    module.net[3].p = fresh.net[3].p = 0.0
    trainer, _ = fit(ns, quiet, way, [ours], module=module, train=train)
    fresh.load_state_dict(module.state_dict())
    trainer.fit_loop.max_epochs = 3
    trainer.fit(module, train, quiet_loader())
    assert trainer.global_step == 18
    fit(ns, quiet, way, [factory(way)], module=fresh, train=train, max_epochs=1)
    assert torch.equal(flat(module), flat(fresh))


def test_resume_with_other_arguments(ns: ModuleType, quiet: dict[str, Any], tmp_path: Path) -> None:
    """Another decay, no average at all, or an average where there was none: the training weights are found, or said."""
    trainer, _ = fit(ns, quiet, "ema", [lp.OptimizerFactory(ema=0.9)], max_epochs=1)
    trainer.save_checkpoint(tmp_path / "c.ckpt")
    trained = torch.load(tmp_path / "c.ckpt", weights_only=True)["callbacks"]
    (state,) = trained.values()
    y = torch.cat([w.flatten() for w in state["training_weights"].values()])
    started: list[torch.Tensor] = []

    class Watch(ns.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            started.append(flat(pl_module).clone())

    for other in (lp.OptimizerFactory(ema=0.99), lp.OptimizerFactory()):
        fit(ns, quiet, "ema", [other, Watch()], ckpt_path=tmp_path / "c.ckpt")
        assert torch.equal(started.pop(), y)
    trainer, _ = fit(ns, quiet, "ema", [], max_epochs=1)
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    late = lp.OptimizerFactory(ema=0.9)
    fit(ns, quiet, "ema", [late], ckpt_path=tmp_path / "plain.ckpt")
    assert any("saved without averaged weights" in line for line in late.messages)


@pytest.mark.parametrize("kind", ["manual", "two_optimizers", "raw_step"])
def test_manual_optimization(kind: str, ns: ModuleType, quiet: dict[str, Any]) -> None:
    """Raw steps, several optimizers at different rates: every step of a parameter counts once."""
    ours = lp.OptimizerFactory(ema=0.9)
    module = make(kind, ns)
    trainer, _ = fit(ns, quiet, "ema", [ours], module=module, max_epochs=1)
    checkpoint: dict[str, Any] = {}
    ours.on_save_checkpoint(trainer, module, checkpoint)
    (state,) = checkpoint["callbacks"].values()
    head = {name: count for name, count in state["ema"]["updates"].items() if name.startswith("net.7")}
    body = {name: count for name, count in state["ema"]["updates"].items() if not name.startswith("net.7")}
    assert set(body.values()) == {6}
    assert set(head.values()) == {3 if kind == "two_optimizers" else 6}


def test_lightnings_finder_does_not_enter_the_average(ns: ModuleType, quiet: dict[str, Any]) -> None:
    finder = ns.callbacks.LearningRateFinder(num_training_steps=12, max_lr=0.1)
    ours = lp.OptimizerFactory(ema=0.9)
    module = module_for("ema", ns)
    module.lr = 1e-2
    trainer, _ = fit(ns, quiet, "ema", [ours, finder], module=module, max_epochs=1)
    checkpoint: dict[str, Any] = {}
    ours.on_save_checkpoint(trainer, module, checkpoint)
    (state,) = checkpoint["callbacks"].values()
    assert set(state["ema"]["updates"].values()) == {6}
    assert not any("without averaged weights" in line for line in ours.messages)


@ways
def test_neighbours(way: str, ns: ModuleType, quiet: dict[str, Any], tmp_path: Path) -> None:
    """EarlyStopping and a monitoring ModelCheckpoint judge and save the same averaged weights."""
    stop = ns.callbacks.EarlyStopping("val_loss", patience=1)
    best = ns.callbacks.ModelCheckpoint(tmp_path, "best", monitor="val_loss")
    trainer, module = fit(ns, quiet, way, [factory(way), stop, best])
    (result,) = trainer.validate(module, quiet_loader(), ckpt_path=best.best_model_path, verbose=False)
    assert result["val_loss"] == pytest.approx(float(best.best_model_score), rel=1e-6)


@ways
def test_lightnings_own_averaging_beside(way: str, ns: ModuleType, quiet: dict[str, Any], reference: Any) -> None:
    """Said; its average ends up in the module, and training goes on as without either."""
    if not hasattr(ns.callbacks, "EMAWeightAveraging"):
        pytest.skip("this release of Lightning has no EMAWeightAveraging")
    _, averaged, losses = reference(way)
    ours = factory(way)
    _, module = fit(ns, quiet, way, [ours, ns.callbacks.EMAWeightAveraging(decay=0.5)], val_check_interval=1)
    assert module.losses == losses
    assert any("EMAWeightAveraging averages too" in line for line in ours.messages)
    assert not torch.equal(flat(module), averaged[-1])


@ways
def test_restored_in_the_middle_of_a_fit(
    way: str, ns: ModuleType, quiet: dict[str, Any], reference: Any, tmp_path: Path
) -> None:
    """What a learning-rate finder at an epoch's start does: save, train, restore. The run goes on as if it had not."""
    _, averaged, losses = reference(way)

    class Finder(ns.Callback):
        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            if trainer.current_epoch == 1:
                trainer.save_checkpoint(tmp_path / "c.ckpt")
                for parameter in module.parameters():
                    parameter.grad = torch.ones_like(parameter)
                trainer.strategy.optimizers[0].step()
                connector = trainer._checkpoint_connector
                connector.resume_start(tmp_path / "c.ckpt")
                connector.restore_model()
                connector.restore_callbacks()
                connector.restore_optimizers_and_schedulers()
                connector.resume_end()

    _, module = fit(ns, quiet, way, [factory(way), Finder()])
    assert module.losses == losses
    assert torch.equal(flat(module), averaged[-1])


def recalibrating(way: str) -> lp.OptimizerFactory:
    arguments = {"ema": {"ema": 0.9}, "auto": {"optimizer": "auto", "warmup": 2}, "schedule_free": {}}[way]
    return lp.OptimizerFactory(**arguments, recalibrate=4)


@ways
def test_recalibrated_batch_norms(
    way: str, ns: ModuleType, quiet: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Statistics of the averaged weights over the first four batches, by a naive loop; training goes on with its own."""
    saver = ns.callbacks.ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=3, save_top_k=-1)
    module = module_for(way, ns)
    train = images(shuffle=False)
    module.net[3].p = 0.0
    seen: list[torch.Tensor] = []

    class Watch(ns.Callback):
        def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
            seen.append(pl_module.net[1].running_var.clone())

    passes: list[int] = []

    def counted(trainer: Any, *args: Any, **kwargs: Any) -> Any:
        passes.append(trainer.global_step)
        return dry_passes(trainer, *args, **kwargs)

    monkeypatch.setattr("lightning_perf.optim.callback_evaluation.dry_passes", counted)
    callbacks = [recalibrating(way), saver, Watch()]
    fit(ns, quiet, way, callbacks, module=module, train=train, val_check_interval=1, num_sanity_val_steps=1)
    for step in (3, 9, 12):
        plain = make("plain", ns)
        plain.load_state_dict(torch.load(tmp_path / f"step={step}.ckpt", weights_only=True)["state_dict"])
        means, variances = [], []
        for index, (x, _) in enumerate(train):
            if index < 4:
                out = plain.net[0](x)
                means.append(out.mean((0, 2, 3)))
                variances.append(out.var((0, 2, 3), unbiased=True))
        torch.testing.assert_close(plain.net[1].running_mean, torch.stack(means).mean(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(plain.net[1].running_var, torch.stack(variances).mean(0), rtol=1e-4, atol=1e-5)
        assert torch.equal(plain.net[1].running_var, seen[step])
    assert torch.equal(module.net[1].running_var, seen[-1])
    assert passes == list(range(1, 13))  # once per step, although the third is both validated and saved
    other = module_for(way, ns)
    other.net[3].p = 0.0
    fit(ns, quiet, way, [factory(way)], module=other, train=train, limit_val_batches=0)
    assert module.losses == other.losses
    assert torch.equal(flat(module), flat(other))


@ways
def test_recalibration_resumes_exactly(way: str, ns: ModuleType, quiet: dict[str, Any], tmp_path: Path) -> None:
    """Weights and running statistics in training come back from the callback's state; dropout and shuffling included."""
    saver = ns.callbacks.ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    _, whole = fit(ns, quiet, way, [recalibrating(way), lp.ExactResume(), saver], max_epochs=3)
    torch.manual_seed(99)
    callbacks = [recalibrating(way), lp.ExactResume()]
    _, resumed = fit(ns, quiet, way, callbacks, max_epochs=3, ckpt_path=tmp_path / "epoch=1.ckpt")
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


def test_recalibration_leaves_frozen_and_unused_norms_alone() -> None:
    module = torch.nn.ModuleList([torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2).eval(), torch.nn.BatchNorm1d(2)])
    clone = copy.deepcopy(module)
    forget_statistics(clone)
    x = torch.tensor([[0.0, 1.0], [2.0, 5.0]])
    clone[1](clone[0](x))
    pairs = dict(statistics_from(clone, module))
    assert torch.equal(pairs[module[0].running_mean], torch.tensor([1.0, 3.0]))
    assert torch.equal(pairs[module[0].running_var], torch.tensor([2.0, 8.0]))
    assert module[2].running_mean not in pairs
    assert torch.equal(pairs.get(module[1].running_mean, torch.zeros(2)), torch.zeros(2))


def test_recalibration_under_manual_optimization(ns: ModuleType, quiet: dict[str, Any]) -> None:
    """The trial passes step nothing and log nothing; a wrong number of batches is refused."""
    for kind in ("manual", "two_optimizers", "raw_step"):
        module, plain = make(kind, ns), make(kind, ns)
        fit(ns, quiet, "ema", [lp.OptimizerFactory(ema=0.9, recalibrate=2)], module=module)
        fit(ns, quiet, "ema", [lp.OptimizerFactory(ema=0.9)], module=plain)
        assert module.losses == plain.losses
    with pytest.raises(ValueError, match=r"recalibrate=-1 must be a number of batches, such as 20"):
        lp.OptimizerFactory(ema=0.9, recalibrate=-1)


def test_refusals(ns: ModuleType, quiet: dict[str, Any]) -> None:
    """Averaging what is averaged; shards; two factories with a say."""
    with pytest.raises(
        MisconfigurationException, match=r"ema=0\.9 .*LiteralScheduleFreeSGD averages already; leave ema"
    ):
        fit(ns, quiet, "schedule_free", [lp.OptimizerFactory(ema=0.9)])
    base = ns.strategies.SingleDeviceStrategy
    sharding = type("Sharding", (base,), {"restore_checkpoint_after_setup": True})
    with pytest.raises(MisconfigurationException, match=r"ema=0\.9 exchanges .*Sharding keeps in shards; use DDP"):
        fit(ns, quiet, "ema", [lp.OptimizerFactory(ema=0.9)], strategy=sharding("cpu"))
    with pytest.raises(MisconfigurationException, match="keep one of the two"):
        fit(ns, quiet, "ema", [lp.OptimizerFactory(ema=0.9), lp.OptimizerFactory("adamw")])


@ways
def test_a_plain_factory_beside(way: str, ns: ModuleType, quiet: dict[str, Any], reference: Any) -> None:
    """Only one of two factories exchanges weights."""
    _, averaged, _ = reference(way)
    other = lp.OptimizerFactory(schedule="constant") if way == "schedule_free" else lp.OptimizerFactory()
    _, module = fit(ns, quiet, way, [other, factory(way)], val_check_interval=1)
    assert torch.equal(flat(module), averaged[-1])
