"""The optimizer door: change what ``configure_optimizers`` returned at the moment the strategy sets it up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch.optim import Optimizer

from lightning_perf.host.doors import require, stand_at
from lightning_perf.host.namespaces import DoorClosed, is_a, namespace_of


@dataclass
class OptimizerSetup:
    """What the strategy holds: raw optimizers (never Lightning's wrappers) and scheduler configurations."""

    optimizers: list[Optimizer]
    schedulers: list[Any]


Guest: TypeAlias = Callable[[OptimizerSetup], None]


def raw(optimizer: Any) -> Any:
    """The optimizer inside Lightning's wrapper of either namespace, or the optimizer itself."""
    return optimizer._optimizer if is_a(optimizer, "LightningOptimizer") else optimizer


def at_optimizer_door(trainer: Any, guest: Guest, *, order: int = 0) -> Callable[[], None]:
    """Have ``guest(setup)`` called once the optimizers exist; it may change both lists of ``setup`` in place.

    Guests with smaller ``order`` come first: those that replace an optimizer (0) before those that tune one (1).

    Raises:
        DoorClosed: under DeepSpeed, which builds its optimizer elsewhere.
    """
    strategy = trainer.strategy
    if is_a(strategy, "DeepSpeedStrategy"):
        raise DoorClosed(
            f"{type(strategy).__name__} builds its optimizer from its own config, where this callback does not reach; "
            "set the optimizer in the DeepSpeed config, or use another strategy."
        )

    def around(guests: list[Any], original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        setup = OptimizerSetup(
            [raw(optimizer) for optimizer in strategy.optimizers], list(strategy.lr_scheduler_configs)
        )
        before = list(setup.optimizers)
        for one in guests:
            one(setup)
        if setup.optimizers != before:
            strategy.optimizers = setup.optimizers
        strategy.lr_scheduler_configs = setup.schedulers
        return result

    return stand_at(strategy, "setup_optimizers", guest, around, order=order, parameters=("trainer",))


def loaded_optimizer_states(trainer: Any) -> list[Any]:
    """What the checkpoint that is being resumed holds for the optimizers; empty without one."""
    return list(require(trainer, "_checkpoint_connector")._loaded_checkpoint.get("optimizer_states", ()))


def scheduler_config(trainer: Any, scheduler: Any) -> Any:
    """Lightning's configuration of a scheduler that is stepped once per optimizer step."""
    types = require(namespace_of(trainer), "utilities").types
    return types.LRSchedulerConfig(scheduler, interval="step", frequency=1)
