"""Rates that the user's schedulers hold: scaled with the peak, in torch's classes and in others, or refused."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.optim import SGD, Adam, lr_scheduler, swa_utils

import lightning_perf as lp
from lightning_perf.host import MisconfigurationException
from lightning_perf.optim.held_rates import cannot_scale, held_rates
from tests.optim.test_callback import fit


class Halving(lr_scheduler.LRScheduler):
    """Its rates are its own arguments, under names that say so."""

    def __init__(self, optimizer: Any, max_lr: float, min_lr: float) -> None:
        self.max_lr, self.min_lr = max_lr, min_lr
        super().__init__(optimizer)

    def get_lr(self) -> Any:
        rate = max(self.min_lr, self.max_lr * 0.5**self.last_epoch)
        return [rate * group["initial_lr"] / self.max_initial for group in self.optimizer.param_groups]

    @property
    def max_initial(self) -> float:
        return max(group["initial_lr"] for group in self.optimizer.param_groups)


class Floor(lr_scheduler.LRScheduler):
    """Holds a rate that nothing can reach, and which the first calls do not show."""

    def __init__(self, optimizer: Any, floor: float) -> None:
        self.limit = (lambda rate: max(rate, floor),)
        super().__init__(optimizer)

    def get_lr(self) -> Any:
        return [self.limit[0](base * 0.8**self.last_epoch) for base in self.base_lrs]


class Relative(Floor):
    """Somebody's class without a rate of its own."""

    def __init__(self, optimizer: Any) -> None:
        super().__init__(optimizer, 0.0)


class Warm(lr_scheduler.LRScheduler):
    """A warm-up with another scheduler after it, as a well-known class has it."""

    def __init__(self, optimizer: Any, after: Any) -> None:
        self.after_scheduler = after
        super().__init__(optimizer)

    def get_lr(self) -> Any:
        if self.last_epoch < 4:
            return [base * (self.last_epoch + 1) / 4 for base in self.base_lrs]
        return self.after_scheduler.get_last_lr()

    def step(self, epoch: int | None = None) -> None:
        if self.last_epoch >= 4:
            self.after_scheduler.step()
        super().step(epoch)


class Picky(Relative):
    """Cannot be stepped without being told something."""

    def step(self, *told: float) -> None:
        if getattr(self, "_step_count", 0) > 0 and not told:
            raise TypeError("tell me")
        super().step()


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 8, eta_min=1e-3),
    "restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 5, eta_min=1e-3),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=4), lr_scheduler.CosineAnnealingLR(o, 8, eta_min=1e-3)], [4]
    ),
    "chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.5, 3), lr_scheduler.CosineAnnealingLR(o, 12, eta_min=1e-3)], optimizer=o
    ),
    "swa": lambda o: swa_utils.SWALR(o, swa_lr=[2e-2, 5e-3], anneal_epochs=6),
    "own names": lambda o: Halving(o, 0.1, 1e-3),
    "relative": Relative,
    "nested in its own way": lambda o: Warm(o, lr_scheduler.CosineAnnealingLR(o, 8, eta_min=1e-3)),
}


def two_groups(module: Any) -> Any:
    head = list(module.net[-1].parameters())
    return SGD([{"params": module.net[:-1].parameters()}, {"params": head, "lr": 1e-2}], lr=0.1)


def per_step(make: Callable[[Any], Any], optimizer: Callable[[Any], Any] = two_groups) -> Callable[[Any], Any]:
    def configure(module: Any) -> Any:
        made = optimizer(module)
        return [made], [{"scheduler": make(made), "interval": "step"}]

    return configure


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.filterwarnings("error:Detected call of:UserWarning", "error:Seems like:UserWarning")
def test_keep_scales_what_the_scheduler_holds(name: str, ns: ModuleType, quiet: dict[str, Any]) -> None:
    """At a hundredth of the peak, a hundredth of every rate of the plain run."""
    _, _, ours = fit(ns, quiet, lp.OptimizerFactory("lion", lr=1e-3), per_step(SCHEDULERS[name]))
    _, _, plain = fit(ns, quiet, ns.callbacks.Callback(), per_step(SCHEDULERS[name]))
    assert max(rates[0] for rates in plain.rates) > 1.5 * min(rates[0] for rates in plain.rates)
    torch.testing.assert_close(100 * torch.tensor(ours.rates), torch.tensor(plain.rates), rtol=1e-5, atol=0.0)


def test_plateau(ns: ModuleType, quiet: dict[str, Any]) -> None:
    """Its floors and its smallest change: five reductions in the plain run, five in ours, then none."""

    def configure(module: Any) -> Any:
        optimizer = two_groups(module)
        plateau = lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=0.5, patience=0, threshold=1e9, min_lr=[1e-2, 1e-3], eps=2e-4
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"}}

    _, _, ours = fit(ns, quiet, lp.OptimizerFactory("lion", lr=1e-4), configure, max_epochs=7)
    _, _, plain = fit(ns, quiet, ns.callbacks.Callback(), configure, max_epochs=7)
    assert plain.rates[-1] == [1e-2, 1e-3]
    torch.testing.assert_close(1000 * torch.tensor(ours.rates), torch.tensor(plain.rates), rtol=1e-5, atol=0.0)


def test_an_unreachable_rate_is_refused(ns: ModuleType, quiet: dict[str, Any]) -> None:
    """In words, before training; at the peak that the user had, nothing is to be scaled; our schedules replace it."""
    configure = per_step(lambda o: Floor(o, 5e-3), lambda module: SGD(module.parameters(), lr=0.1))
    with pytest.raises(
        MisconfigurationException, match=r"Floor holds.* 7 .*0\.005 instead of 0\.00419.*schedule='one_cycle'"
    ):
        fit(ns, quiet, lp.OptimizerFactory("adamw", lr=2e-2), configure)
    fit(ns, quiet, lp.OptimizerFactory("adamw", lr=0.1), configure)
    fit(ns, quiet, lp.OptimizerFactory("adamw", lr=2e-2, schedule="one_cycle"), configure)
    higher = per_step(lambda o: Halving(o, 0.3, 1e-3))
    with pytest.raises(MisconfigurationException, match=r"Halving rises to 0\.15, above the 0\.1 that SGD was given"):
        fit(ns, quiet, lp.OptimizerFactory("adamw", lr=2e-2), higher)
    with pytest.raises(MisconfigurationException, match=r"Picky cannot be stepped.*TypeError: tell me"):
        fit(ns, quiet, lp.OptimizerFactory("adamw", lr=2e-2), per_step(Picky))


def test_a_range_test_asks_first(ns: ModuleType, quiet: dict[str, Any]) -> None:
    """lr='auto' on the user's own optimizer scales the same rates, and refuses the same schedulers."""
    for make, words in (
        (lambda o: Floor(o, 2e-2), "Floor holds learning rates"),
        (lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, cycle_momentum=False), "CyclicLR keeps its peaks"),
    ):
        with pytest.raises(MisconfigurationException, match=f"lr='auto' cannot scale.*{words}"):
            fit(ns, quiet, lp.OptimizerFactory(lr="auto"), per_step(make))
    with pytest.raises(MisconfigurationException, match="learning rate 0"):
        fit(ns, quiet, lp.OptimizerFactory(lr="auto"), lambda module: SGD(module.parameters(), lr=0.0))
    floored = per_step(SCHEDULERS["cosine"], lambda module: Adam(module.parameters(), lr=1e-2))
    factory = lp.OptimizerFactory(lr="auto")
    trainer, _, ours = fit(ns, quiet, factory, floored)
    assert any("learning rate" in line and "from a range test" in line for line in factory.messages)
    peak = ours.rates[0][0]
    _, _, plain = fit(ns, quiet, ns.callbacks.Callback(), floored)
    torch.testing.assert_close(torch.tensor(ours.rates) / peak, 100 * torch.tensor(plain.rates), rtol=1e-5, atol=0.0)
    assert peak != 1e-2
    assert trainer.lr_scheduler_configs[0].scheduler.eta_min == peak * (1e-3 / 1e-2)


def test_a_resumed_run_keeps_the_scaled_floor(ns: ModuleType, quiet: dict[str, Any], tmp_path: Any) -> None:
    configure = per_step(SCHEDULERS["cosine"])
    trainer, _, whole = fit(ns, quiet, lp.OptimizerFactory("adamw", lr=1e-3), configure, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "c.ckpt")
    _, _, whole = fit(ns, quiet, lp.OptimizerFactory("adamw", lr=1e-3), configure)
    _, _, rest = fit(ns, quiet, lp.OptimizerFactory("adamw", lr=1e-3), configure, resume=tmp_path / "c.ckpt")
    assert rest.rates == whole.rates[6:]


def test_the_users_own_rates_stay(ns: ModuleType, quiet: dict[str, Any]) -> None:
    """Without a new rate nothing is scaled, tried or refused."""
    for make in (*SCHEDULERS.values(), lambda o: Floor(o, 2e-2)):
        _, _, ours = fit(ns, quiet, lp.OptimizerFactory(), per_step(make), max_steps=1)
        _, _, plain = fit(ns, quiet, ns.callbacks.Callback(), per_step(make), max_steps=1)
        assert ours.rates == plain.rates
    fit(ns, quiet, lp.OptimizerFactory(), lambda module: SGD(module.parameters(), lr=0.0))


def test_our_schedule_starts_from_the_top_of_a_cycle(ns: ModuleType, quiet: dict[str, Any]) -> None:
    configure = per_step(lambda o: lr_scheduler.CyclicLR(o, 0.01, [0.3, 0.2], cycle_momentum=False))
    _, _, record = fit(ns, quiet, lp.OptimizerFactory(schedule="constant"), configure)
    assert record.rates == [[0.3, 0.2]] * 12


def test_every_rate_of_torchs_schedulers_is_known() -> None:
    """By hand, for each class that torch has, so that a new one is looked at; ``None`` holds no rate but its first."""
    weight = [torch.nn.Parameter(torch.zeros(1))]
    table: dict[str, tuple[Callable[[Any], Any], set[str]]] = {
        "ChainedScheduler": (lambda o: lr_scheduler.ChainedScheduler([lr_scheduler.StepLR(o, 1)], o), set()),
        "ConstantLR": (lr_scheduler.ConstantLR, {"base_lrs"}),
        "CosineAnnealingLR": (lambda o: lr_scheduler.CosineAnnealingLR(o, 5), {"base_lrs", "eta_min"}),
        "CosineAnnealingWarmRestarts": (
            lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 5),
            {"base_lrs", "eta_min"},
        ),
        "CyclicLR": (
            lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, cycle_momentum=False),
            {"base_lrs", "max_lrs"},
        ),
        "ExponentialLR": (lambda o: lr_scheduler.ExponentialLR(o, 0.9), {"base_lrs"}),
        "LambdaLR": (lambda o: lr_scheduler.LambdaLR(o, lambda _: 1.0), {"base_lrs"}),
        "LinearLR": (lr_scheduler.LinearLR, {"base_lrs"}),
        "MultiStepLR": (lambda o: lr_scheduler.MultiStepLR(o, [3]), {"base_lrs"}),
        "MultiplicativeLR": (lambda o: lr_scheduler.MultiplicativeLR(o, lambda _: 1.0), {"base_lrs"}),
        "OneCycleLR": (lambda o: lr_scheduler.OneCycleLR(o, 0.1, 5), {"base_lrs"}),
        "PolynomialLR": (lr_scheduler.PolynomialLR, {"base_lrs"}),
        "ReduceLROnPlateau": (lr_scheduler.ReduceLROnPlateau, {"min_lrs", "default_min_lr", "eps"}),
        "SequentialLR": (lambda o: lr_scheduler.SequentialLR(o, [lr_scheduler.StepLR(o, 1)], []), set()),
        "StepLR": (lambda o: lr_scheduler.StepLR(o, 1), {"base_lrs"}),
        "SWALR": (lambda o: swa_utils.SWALR(o, 0.1), {"base_lrs"}),
    }
    classes = {n for n in lr_scheduler.__all__ if n != "LRScheduler"} | {"SWALR"}
    assert set(table) == classes
    for name, (make, held) in table.items():
        assert set(held_rates(make(Adam(weight, lr=0.1)))) == held | {"_last_lr"}, name


def test_a_trial_changes_nothing_and_copies_nothing_large() -> None:
    class Holder:
        def __deepcopy__(self, memo: Any) -> Any:
            raise AssertionError("copied")

    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=torch.tensor(0.1))
    scheduler, holder = Relative(optimizer), Holder()
    scheduler.holder = holder  # type: ignore[attr-defined]
    before = dict(vars(scheduler))
    assert cannot_scale(scheduler, optimizer, 0.01, calls=lambda: 20, shared=[holder]) is None
    assert vars(scheduler) == before
    assert optimizer.param_groups[0]["lr"] == torch.tensor(0.1)
    reason = cannot_scale(scheduler, optimizer, 0.01, calls=lambda: 20)
    assert reason is not None
    assert reason.startswith("Relative cannot be copied")
