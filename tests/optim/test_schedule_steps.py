"""Our schedules in modules and beside callbacks that have a say in the steps of a schedule."""

from __future__ import annotations

import copy
import pickle
from types import ModuleType
from typing import Any

import lightning.pytorch
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

import lightning_perf as lp
from lightning_perf.host.scheduler_door import at_scheduler_door
from tests.contract.modules import images, make
from tests.optim.test_callback import Rates


def cosine() -> lp.OptimizerFactory:
    return lp.OptimizerFactory("adamw", lr=1e-2, schedule="warmup_cosine", warmup=4)


def fit_with(
    ns: ModuleType, quiet: dict[str, Any], factory: Any, methods: dict[str, Any], *callbacks: Any, **arguments: Any
) -> tuple[Any, Any, list[list[float]]]:
    """A fit of the plain module with ``methods`` of its own."""
    torch.manual_seed(3)
    module = type("Own", (type(make("plain", ns)),), methods)()
    resume, record = arguments.pop("resume", None), Rates(ns)
    torch.manual_seed(11)
    trainer = ns.Trainer(
        **{**quiet, "max_epochs": 2, **arguments},
        callbacks=[*callbacks, *([factory] if factory else []), record.callback],
    )
    trainer.fit(module, images(), images(8, shuffle=False), ckpt_path=resume)
    return trainer, module, record.rates


def by_epoch(self: Any, scheduler: Any, metric: Any) -> None:
    """As in Lightning's documentation, for timm's schedulers."""
    scheduler.step(epoch=self.current_epoch)


def by_update(self: Any, scheduler: Any, metric: Any) -> None:
    scheduler.step_update(num_updates=self.global_step)


def never(self: Any, scheduler: Any, metric: Any) -> None:
    assert metric is None


@pytest.mark.parametrize("hook", [by_epoch, by_update, never])
def test_a_modules_lr_scheduler_step_does_not_step_our_schedule(
    hook: Any, ns: ModuleType, quiet: dict[str, Any]
) -> None:
    """The same rates as without the hook, and the hook is back after the fit."""
    _, _, expected = fit_with(ns, quiet, cosine(), {})
    assert max(expected)[0] == 1e-2
    _, module, rates = fit_with(ns, quiet, cosine(), {"lr_scheduler_step": hook})
    assert rates == expected
    assert "lr_scheduler_step" not in vars(module)


def test_it_still_steps_the_modules_own_scheduler(ns: ModuleType, quiet: dict[str, Any]) -> None:
    """Under ``keep``: with the module's hook, on the optimizer that took the place of its own."""

    def configure(self: Any) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=1e-2)
        return [optimizer], [lr_scheduler.ExponentialLR(optimizer, 0.5)]

    def twice(self: Any, scheduler: Any, metric: Any) -> None:
        scheduler.step()
        scheduler.step()

    methods = {"configure_optimizers": configure, "lr_scheduler_step": twice}
    _, _, rates = fit_with(ns, quiet, lp.OptimizerFactory("adamw", lr=1e-3), methods)
    assert rates == [[1e-3]] * 6 + [[2.5e-4]] * 6


class Hooked(lightning.pytorch.LightningModule):
    """Can be pickled."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.hooked = 0

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        self.hooked += 1


def test_copies_and_pickles_of_the_module_have_its_own_hook() -> None:
    class Counter:
        steps = 0

        def step(self) -> None:
            self.steps += 1

    module, ours, other = Hooked(), Counter(), Counter()
    leave = at_scheduler_door(module, lambda scheduler: scheduler is ours)
    for one in (ours, other):
        module.lr_scheduler_step(one, None)
    assert (ours.steps, other.steps, module.hooked) == (1, 0, 1)
    assert module.lr_scheduler_step.__code__ is Hooked.lr_scheduler_step.__code__
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        twin.lr_scheduler_step(ours, None)
        assert (twin.hooked, module.hooked, ours.steps) == (2, 1, 1)
    leave()
    module.lr_scheduler_step(ours, None)
    assert (ours.steps, module.hooked) == (1, 2)


@pytest.mark.parametrize(("scheduling", "steps"), [({0: 4}, 4), ({0: 1, 1: 4}, 8)], ids=str)
def test_a_schedule_over_changing_accumulation(
    scheduling: dict[int, int], steps: int, ns: ModuleType, quiet: dict[str, Any]
) -> None:
    """Six batches, two epochs: the last of the steps, counted by hand, has the last of the factors."""
    factory = lp.OptimizerFactory("adamw", lr=1.0, schedule="warmup_linear", warmup=1)
    scheduler = ns.callbacks.GradientAccumulationScheduler(scheduling)
    trainer, _, rates = fit_with(ns, quiet, factory, {}, scheduler)
    assert trainer.global_step == steps
    assert rates[-1][0] == pytest.approx(1 / (steps - 1))
    assert f"over {steps} optimizer steps" in factory.messages[1]
    auto = lp.OptimizerFactory("auto", warmup=0.5)
    fit_with(ns, quiet, auto, {}, ns.callbacks.GradientAccumulationScheduler(scheduling))
    assert any(f"a warm-up of {steps // 2} optimizer steps" in line for line in auto.messages)


def thawing(ns: ModuleType) -> Any:
    """Freezes the first convolution and adds it as a group of its own after the first epoch."""

    class Thaw(ns.callbacks.BaseFinetuning):
        def freeze_before_training(self, pl_module: Any) -> None:
            self.freeze(pl_module.net[0])

        def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
            if epoch == 1:
                self.unfreeze_and_add_param_group(pl_module.net[0], optimizer, lr=1e-4, initial_denom_lr=1.0)

    return Thaw()


def trainable(self: Any) -> Any:
    return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-2)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("adamw", {"schedule": "warmup_cosine", "lr": 1e-2}),
        ("adamw", {"lr": 1e-2}),
        ("auto", {}),
        (None, {"schedule": "wsd"}),
    ],
    ids=str,
)
def test_groups_added_in_training(
    name: str | None, arguments: dict[str, Any], ns: ModuleType, quiet: dict[str, Any], tmp_path: Any
) -> None:
    """They keep the rate they came with, ours go on; a checkpoint from after the thaw is resumed."""
    methods = {"configure_optimizers": trainable}
    keep = ns.callbacks.ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    _, _, whole = fit_with(
        ns,
        {**quiet, "enable_checkpointing": True},
        lp.OptimizerFactory(name, **arguments),
        methods,
        thawing(ns),
        keep,
        max_epochs=3,
    )
    assert [len(rates) for rates in (whole[0], whole[6])] == [len(whole[0]), len(whole[0]) + 1]
    assert {rates[-1] for rates in whole[6:]} == {1e-4}
    factory = lp.OptimizerFactory(name, **arguments)
    trainer, _, rest = fit_with(
        ns, quiet, factory, methods, thawing(ns), max_epochs=3, resume=tmp_path / "epoch=1.ckpt"
    )
    assert trainer.global_step == 18
    assert rest == whole[12:]


def warming(self: Any, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
    """As in Lightning's documentation."""
    optimizer.step(closure=optimizer_closure)
    for group in optimizer.param_groups:
        group["lr"] = 0.5


def counting(self: Any, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
    optimizer.step(closure=optimizer_closure)


def test_rates_that_optimizer_step_sets_are_said(ns: ModuleType, quiet: dict[str, Any]) -> None:
    """Where a rate was asked for, and the hook speaks of rates."""

    def told(factory: lp.OptimizerFactory, hook: Any) -> bool:
        _, _, rates = fit_with(ns, quiet, factory, {"optimizer_step": hook}, max_epochs=1)
        assert (rates[-1] == [0.5] * len(rates[-1])) is (hook is warming)
        return any("Own.optimizer_step speaks of 'lr'" in line for line in factory.messages)

    assert told(lp.OptimizerFactory("adamw", lr=1e-3), warming)
    assert not told(lp.OptimizerFactory("adamw", lr=1e-3), counting)
    assert not told(lp.OptimizerFactory(), warming)


@pytest.mark.parametrize("returned", [False, True])
def test_a_scheduler_that_the_module_keeps_is_said(returned: bool, ns: ModuleType, quiet: dict[str, Any]) -> None:
    def configure(self: Any) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=1e-2)
        self.decay = lr_scheduler.ExponentialLR(optimizer, 0.5)
        return [optimizer], [self.decay] if returned else []

    for factory in (
        lp.OptimizerFactory("adamw", lr=1e-3),
        lp.OptimizerFactory("adamw", lr=1e-3, schedule="constant"),
        lp.OptimizerFactory(),
    ):
        fit_with(ns, quiet, factory, {"configure_optimizers": configure}, max_epochs=1)
        said = any("Own.decay (ExponentialLR) was not returned" in line for line in factory.messages)
        assert said is (not returned and factory.row is not None)
