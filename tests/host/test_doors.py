"""The doors: order, once per run, undo, refusals, and what stands beside them."""

from __future__ import annotations

import copy
import pickle
from types import ModuleType
from typing import Any

import pytest
import torch

from lightning_perf import host
from lightning_perf.host import DoorClosed, PerfCallback, Stage, doors
from lightning_perf.host.probes import missing_names
from tests.contract.modules import images, make


def fit(ns: ModuleType, callbacks: list[Any], quiet: dict[str, Any], **arguments: Any) -> Any:
    module = make(arguments.pop("kind", "plain"), ns)
    torch.manual_seed(11)
    trainer = ns.Trainer(**{**quiet, "max_epochs": 1, **arguments}, callbacks=callbacks)
    trainer.fit(module, images(), images(8, shuffle=False))
    return trainer, module


class Visitor(PerfCallback):
    """Stands at a door and writes down when it was served."""

    def __init__(self, name: str, stage: Stage, seen: list[str]) -> None:
        super().__init__(name=name)
        self.name, self.at, self.seen = name, stage, seen

    def engage(self, trainer: Any, pl_module: Any, stage: str) -> None:
        def transform(module: Any, checkpoint: Any) -> None:
            assert module is trainer.lightning_module
            assert not trainer.strategy.optimizers or stage != "fit"
            self.seen.append(f"{self.name} {stage} {sorted(checkpoint.get('callbacks', {}))}")

        self.undo(trainer).push(host.at_module_door(trainer, self.at, transform))


def test_module_door_serves_in_stages_and_once(ns: ModuleType, quiet: dict[str, Any], tmp_path: Any) -> None:
    """Structure comes before compile whatever the order of callbacks; the LR finder's second restore is not served."""
    seen: list[str] = []
    callbacks = [Visitor("compile", Stage.COMPILE, seen), Visitor("structure", Stage.STRUCTURE, seen)]
    trainer, module = fit(ns, callbacks, quiet)
    assert seen == ["structure fit []", "compile fit []"]
    trainer.save_checkpoint(tmp_path / "c.ckpt")
    seen.clear()
    trainer.validate(module, images(8), ckpt_path=tmp_path / "c.ckpt", verbose=False)
    assert [line.split(" [")[0] for line in seen] == ["structure validate", "compile validate"]
    seen.clear()
    finder = ns.callbacks.LearningRateFinder(num_training_steps=4)
    module.lr = 1e-3
    other = ns.Trainer(**quiet, max_epochs=1, callbacks=[*callbacks, finder])
    other.fit(module, images(), images(8))
    assert [line.split(" [")[0] for line in seen] == ["structure fit", "compile fit"]


def test_module_door_sees_what_configure_model_made(ns: ModuleType, quiet: dict[str, Any]) -> None:
    """Layers that exist only after ``setup`` and ``configure_model`` are there, and no optimizer is yet."""
    base = type(make("plain", ns))

    class Late(base):  # type: ignore[misc, valid-type]
        def configure_model(self) -> None:
            self.late = torch.nn.Linear(1, 1)

    found: list[bool] = []

    class Look(PerfCallback):
        def engage(self, trainer: Any, pl_module: Any, stage: str) -> None:
            transform = lambda module, checkpoint: found.append(hasattr(module, "late"))  # noqa: E731
            self.undo(trainer).push(host.at_module_door(trainer, Stage.STRUCTURE, transform))

    trainer = ns.Trainer(**quiet, max_epochs=1, callbacks=[Look()])
    trainer.fit(Late(), images(), images(8))
    assert found == [True]


@pytest.mark.parametrize("strategy", ["FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy"])
def test_doors_refuse_by_name(strategy: str, quiet: dict[str, Any]) -> None:
    """Strategies whose inside a door cannot reach are named, with what to use instead (the strategies are faked)."""
    import lightning.pytorch as ns

    base = ns.strategies.SingleDeviceStrategy
    fake = type(strategy, (base,), {"__module__": base.__module__, "restore_checkpoint_after_setup": True})
    trainer = ns.Trainer(**{**quiet, "devices": 1}, strategy=fake("cpu"))
    with pytest.raises(DoorClosed, match=f"{strategy}.*use a single device or DDP"):
        host.at_module_door(trainer, Stage.STRUCTURE, lambda module, checkpoint: None)
    if strategy == "DeepSpeedStrategy":
        with pytest.raises(DoorClosed, match="DeepSpeedStrategy builds its optimizer"):
            host.at_optimizer_door(trainer, lambda setup: None)


def test_a_missing_private_name_disables_only_its_lever(quiet: dict[str, Any]) -> None:
    """A Lightning without the name: the callback says so and the run goes on; an essential one raises."""
    import lightning.pytorch as ns

    class Broken(PerfCallback):
        def engage(self, trainer: Any, pl_module: Any, stage: str) -> None:
            doors.require(trainer, "name_of_tomorrow")

    callback = Broken()
    trainer, _ = fit(ns, [callback], quiet)
    assert trainer.global_step == 6
    assert "does nothing" in callback.messages[0]
    assert "Trainer.name_of_tomorrow" in callback.messages[0]
    callback.essential = True
    with pytest.raises(DoorClosed, match=r"name_of_tomorrow.*supported release"):
        fit(ns, [callback], quiet)


def test_private_names_of_this_release(ns: ModuleType) -> None:
    """Every private name that the house stands on is there with its parameters; a wrong row would be seen."""
    assert missing_names(ns) == []


def test_missing_names_are_named(ns: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_perf.host import probes

    rows = (
        probes.PrivateName("strategies.Strategy", "nope", None, "a test"),
        probes.PrivateName("strategies.Strategy", "setup_optimizers", ("self", "other"), "a test"),
    )
    monkeypatch.setattr(probes, "PRIVATE_NAMES", rows)
    first, second = missing_names(ns)
    assert "nope is missing (a test)" in first
    assert "('self', 'trainer'), not ('self', 'other')" in second


def test_optimizer_door_replaces_and_rebinds(ns: ModuleType, quiet: dict[str, Any]) -> None:
    """A guest's optimizer is the one that steps; guests of order 0 come before those of order 1."""
    order: list[str] = []

    class Swap(PerfCallback):
        def engage(self, trainer: Any, pl_module: Any, stage: str) -> None:
            def tune(setup: host.OptimizerSetup) -> None:
                order.append(type(setup.optimizers[0]).__name__)

            def swap(setup: host.OptimizerSetup) -> None:
                setup.optimizers[0] = torch.optim.SGD(pl_module.parameters(), lr=0.1)

            self.undo(trainer).push(host.at_optimizer_door(trainer, tune, order=1))
            self.undo(trainer).push(host.at_optimizer_door(trainer, swap))

    trainer, _ = fit(ns, [Swap()], quiet)
    assert order == ["SGD"]
    assert type(trainer.optimizers[0]) is torch.optim.SGD


def test_weights_door_covers_weights_only_saves(ns: ModuleType, quiet: dict[str, Any], tmp_path: Any) -> None:
    """``save_weights_only=True`` skips callbacks; the door is still asked, and leaves no wrap behind."""

    class Zero(PerfCallback):
        def engage(self, trainer: Any, pl_module: Any, stage: str) -> None:
            zero = lambda state: {key: torch.zeros_like(value) for key, value in state.items()}  # noqa: E731
            self.undo(trainer).push(host.at_weights_door(trainer, zero))

    saver = ns.callbacks.ModelCheckpoint(tmp_path, "w", save_weights_only=True)
    trainer, module = fit(ns, [Zero(), saver], {**quiet, "enable_checkpointing": True})
    state = torch.load(tmp_path / "w.ckpt", weights_only=True)["state_dict"]
    assert list(state) == list(module.state_dict())
    assert all(not value.any() for value in state.values())
    assert any(value.any() for value in trainer.strategy.lightning_module_state_dict().values())


class Ledger:
    """A listener that keeps the stack of actions honest."""

    def __init__(self) -> None:
        self.open: list[str] = []
        self.seen: list[str] = []

    def start(self, action_name: str) -> None:
        self.open.append(action_name)
        self.seen.append(action_name)

    def stop(self, action_name: str) -> None:
        assert self.open.pop() == action_name


class Listen(PerfCallback):
    def engage(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.ledger = Ledger()
        self.undo(trainer).push(host.at_timing_door(trainer, self.ledger))


@pytest.mark.parametrize("profiler", [None, "simple"])
def test_timing_door_hears_the_loops_beside_the_users_profiler(
    profiler: str | None, ns: ModuleType, quiet: dict[str, Any]
) -> None:
    """Actions nest, every one is closed, the user's own profiler still gets them, and it is put back."""
    listen = Listen()
    trainer, _ = fit(ns, [listen], quiet, profiler=profiler)
    names = listen.ledger.seen
    for expected in ("run_training_epoch", "run_training_batch", "[_TrainingEpochLoop].train_dataloader_next"):
        assert expected in names
    assert sum(name.endswith(".training_step") for name in names) == 6
    assert listen.ledger.open in ([], [name for name in listen.ledger.open if "teardown" in name])
    assert type(trainer.profiler).__name__ == ("SimpleProfiler" if profiler else "PassThroughProfiler")
    if profiler:
        assert len(trainer.profiler.recorded_durations["run_training_batch"]) == 6


def test_step_door_wraps_in_order_and_leaves(ns: ModuleType, quiet: dict[str, Any]) -> None:
    """The guest of the smaller order is outermost; one that leaves is not asked again."""
    seen: list[str] = []

    class Around(PerfCallback):
        def engage(self, trainer: Any, pl_module: Any, stage: str) -> None:
            def outer(step: Any) -> Any:
                seen.append("outer")
                return step()

            def inner(step: Any) -> Any:
                seen.append("inner")
                leave()
                return step()

            leave = host.at_step_door(trainer, "training_step", inner, order=1)
            self.undo(trainer).push(host.at_step_door(trainer, "training_step", outer))

    fit(ns, [Around()], quiet)
    assert seen == ["outer", "inner"] + ["outer"] * 5


def test_doors_are_transparent_when_wrapped_by_somebody_else(quiet: dict[str, Any]) -> None:
    """Another wrap on top of ours, which we cannot take off: ours steps aside."""

    class Target:
        def method(self) -> int:
            return 1

    target = Target()
    add = lambda guests, original, args, kwargs: original() + len(guests)  # noqa: E731
    leave = doors.stand_at(target, "method", object(), add)
    ours = target.method
    vars(target)["method"] = lambda: ours() * 10
    assert target.method() == 20
    leave()
    assert target.method() == 10
    again = doors.stand_at(target, "method", object(), add)
    assert target.method() == 11
    again()


def test_undo_runs_everything_and_raises_the_error() -> None:
    ran: list[int] = []
    undo = host.Undo()
    undo.push(ran.append, 1)
    undo.push(lambda: 1 / 0)
    undo.push(ran.append, 3)
    with pytest.raises(ZeroDivisionError):
        undo.run()
    assert ran == [3, 1]
    undo.run()
    assert ran == [3, 1]


def test_module_pickles_and_copies_inside_a_fit(ns: ModuleType, quiet: dict[str, Any]) -> None:
    """In the middle of a fit with every door in use, the user's module still pickles and deep-copies."""
    import lightning_perf as lp

    module = make("plain", ns)
    states: list[Any] = []

    class Copy(ns.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            if trainer.global_step == 3:
                states.append(copy.deepcopy(pl_module).state_dict())
                states.append(pickle.loads(pickle.dumps(pl_module.net)).state_dict())

    trainer = ns.Trainer(**quiet, max_epochs=1, callbacks=[*lp.lossless(), Copy()])
    trainer.fit(module, images(), images(8))
    assert len(states) == 2


def test_namespaces() -> None:
    import lightning.pytorch as unified
    import pytorch_lightning as standalone

    class OwnTrainer(standalone.Trainer):
        pass

    assert host.namespace_of(OwnTrainer(logger=False, accelerator="cpu")) is standalone
    assert host.namespace_of(unified.Trainer(logger=False, accelerator="cpu")) is unified
    with pytest.raises(TypeError, match="int inherits from neither"):
        host.namespace_of(3)
    for each in (unified, standalone):
        assert issubclass(host.MisconfigurationException, each.utilities.exceptions.MisconfigurationException)
