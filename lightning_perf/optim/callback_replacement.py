"""Another optimizer in place of the module's, our schedule in place of its schedulers, another rate in both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_perf.host import MisconfigurationException, OptimizerSetup
from lightning_perf.host.optimizer_door import scheduler_config
from lightning_perf.host.run_length import optimizer_steps
from lightning_perf.optim.cost import Costly
from lightning_perf.optim.held_rates import (
    LEARNING_RATES,
    SchedulerRates,
    cannot_scale,
    peak_of,
    rates_like,
    reference_lr,
)
from lightning_perf.optim.param_groups import describe_groups
from lightning_perf.optim.rebind import cannot_rebind, forget_schedulers, groups_like, groups_over, rebind
from lightning_perf.optim.registry import OptimizerRow, build
from lightning_perf.optim.schedules import get_schedule, make_factor, resolve_warmup

Say = Callable[[str], None]


class Replaced(NamedTuple):
    """What a :class:`Replacement` leaves to be set anew for another peak learning rate.

    ``groups`` are the optimizer's, as a function of the peak; ``held`` are the rates in schedulers that were moved.
    """

    groups: Callable[[float], list[dict[str, Any]]]
    held: SchedulerRates | None


@dataclass(frozen=True)
class Replacement:
    """What is to stand in place of the module's optimizer.

    ``schedule`` is a name of :func:`list_schedules`, or ``none`` to leave the module's schedulers out. With ``infer``
    off, the module's own groups stay as they are.
    """

    row: OptimizerRow
    lr: float | None
    weight_decay: float | None
    schedule: str
    groups: Mapping[str, Mapping[str, Any]]
    options: Mapping[str, Any]
    infer: bool = True

    @property
    def rate(self) -> float:
        """The peak learning rate: as asked for, or the registry's."""
        default = self.row.defaults.get("lr")
        return self.lr if self.lr is not None else float(default if isinstance(default, (int, float)) else 1e-3)

    def apply(self, module: Any, setup: OptimizerSetup, say: Say) -> Replaced:
        """Replace the optimizer of ``setup``."""
        old = setup.optimizers[0]
        _check_ratios(module, old)
        bound = self.schedule == "keep" and bool(setup.schedulers)
        if bound and self.groups:
            raise MisconfigurationException(
                f"groups={dict(self.groups)!r} cannot change the groups to which the module's own scheduler is bound; pass "
                "a schedule of ours (such as schedule='warmup_cosine'), or leave groups out."
            )
        decay = self._decay()

        def groups(lr: float) -> list[dict[str, Any]]:
            if bound or not self.infer:
                made = groups_like(old, lr=lr, weight_decay=decay)
            else:
                made = groups_over(module, old, lr=lr, weight_decay=decay, patterns=self.groups)
            return made if self.row.grouping is None else self.row.grouping(module, made, split=not bound)

        new = build(self.row.name, groups(self.rate), lr=self.rate, weight_decay=decay, options=self.options)
        held = self._move_schedulers(module, setup, old, new) if self.schedule == "keep" else None
        kept = "; the module's groups and scheduler were kept" if bound else ""
        if self.schedule == "none" and setup.schedulers:
            kept = f"; the module's {', '.join(type(c.scheduler).__name__ for c in setup.schedulers)} was left out"
        if self.schedule != "keep":
            setup.schedulers.clear()
        setup.optimizers[0] = new
        default = ", the default" if self.lr is None else ""
        say(
            f"{type(old).__name__} (lr {reference_lr(old):g}) replaced by {self.row.name} (lr {self.rate:g}{default}){kept}."
            f"\n{describe_groups(new.param_groups)}"
        )
        if isinstance(new, Costly):
            say(new.cost_note())
        return Replaced(groups, held)

    def _decay(self) -> float | None:
        default = self.row.defaults.get("weight_decay")
        if self.weight_decay is None and isinstance(default, (int, float)):
            return float(default)
        return self.weight_decay

    def _move_schedulers(self, module: Any, setup: OptimizerSetup, old: Optimizer, new: Optimizer) -> SchedulerRates:
        for config in setup.schedulers:
            reason = _cannot_follow(config, old, self.rate, module) or cannot_rebind(config.scheduler, new)
            if reason is not None:
                raise MisconfigurationException(
                    f"schedule='keep' cannot move the module's scheduler: {reason}. Pass one of our schedules, such as "
                    "schedule='one_cycle', or an optimizer of the same kind."
                )
        schedulers = [config.scheduler for config in setup.schedulers]
        rates = SchedulerRates(schedulers, old)
        for scheduler in schedulers:
            rebind(scheduler, old, new)
        rates.scale(self.rate)
        return rates


def _check_ratios(module: Any, optimizer: Optimizer) -> None:
    if not reference_lr(optimizer) > 0:
        raise MisconfigurationException(
            f"{type(optimizer).__name__} of {type(module).__name__} has learning rate {reference_lr(optimizer)}: the module "
            "sets it itself, and no ratio can be carried over; use OptimizerFactory() to keep the optimizer."
        )


def _cannot_follow(config: Any, optimizer: Optimizer, lr: float, module: Any) -> str | None:
    """Why the scheduler of ``config`` would not follow ``optimizer`` to the peak ``lr``, or ``None`` if it would."""
    trainer = module.trainer
    return cannot_scale(
        config.scheduler,
        optimizer,
        lr,
        calls=lambda: trainer.max_epochs if config.interval == "epoch" else optimizer_steps(trainer),
        metric=config.reduce_on_plateau,
        shared=(trainer, *module.modules()),
    )


def warmup_within(trainer: Any, warmup: float | int, say: Say) -> float | int:
    """The warm-up; under ``fast_dev_run`` at most all steps but one, since a real run is longer."""
    most = optimizer_steps(trainer) - 1
    if not trainer.fast_dev_run or not isinstance(warmup, int) or warmup <= most:
        return warmup
    say(f"fast_dev_run is too short for warmup={warmup}; it is {most:.0f} in it.")
    return int(most)


class OurSchedule(LambdaLR):
    """The factor of a step times the peaks of the groups there were; groups added later have the rates they came with."""

    def get_lr(self) -> list[Any]:
        """torch's hook."""
        added = self.optimizer.param_groups[len(self.base_lrs) :]
        return [*super().get_lr(), *(group["lr"] for group in added)]


class RunRates:
    """The learning rates of a run, to be set to another peak exactly as if that had been asked for.

    Args:
        setup: optimizer and schedulers, as :class:`Replacement` left them.
        replaced: its result; ``None`` where the module's optimizer is kept.
    """

    def __init__(self, setup: OptimizerSetup, replaced: Replaced | None) -> None:
        self._optimizer = setup.optimizers[0]
        self._groups, held = replaced or (None, None)
        self._kept = list(setup.schedulers)
        self._held = held or SchedulerRates([config.scheduler for config in self._kept], self._optimizer)
        self._ours: tuple[Any, Callable[[int], float]] | None = None
        self._own = [dict(group) for group in self._optimizer.param_groups]

    def schedule(self, trainer: Any, setup: OptimizerSetup, name: str, warmup: float | int, say: Say) -> None:
        """Put the schedule called ``name`` in place of the schedulers of ``setup``."""
        total = optimizer_steps(trainer)
        if get_schedule(name).needs_total:
            warmup = warmup_within(trainer, warmup, say)
        factor = make_factor(name, total, warmup)
        forget_schedulers(self._optimizer, [config.scheduler for config in setup.schedulers])
        replaced = ", ".join(type(config.scheduler).__name__ for config in setup.schedulers)
        self._own = [dict(group) for group in self._optimizer.param_groups]
        config = scheduler_config(trainer, OurSchedule(self._optimizer, factor))
        setup.schedulers[:] = [config]
        self._ours, self._kept = (config, factor), []
        steps = ""
        if get_schedule(name).needs_total:
            steps = f" over {total} optimizer steps, {resolve_warmup(warmup, int(total))} of them warm-up"
        instead = f" in place of the module's {replaced}" if replaced else ""
        say(f"schedule {name}{steps}{instead}.")

    def is_ours(self, scheduler: Any) -> bool:
        """Whether a scheduler is the one that :meth:`schedule` made."""
        return self._ours is not None and scheduler is self._ours[0].scheduler

    def check(self, module: Any) -> None:
        """Refuse, before a rate is looked for, a scheduler of the module's that could not be given it."""
        _check_ratios(module, self._optimizer)
        for config in self._kept:
            # Any other rate will do: a shape scales or it does not.
            reason = _cannot_follow(config, self._optimizer, reference_lr(self._optimizer) / 8, module)
            if reason is not None:
                raise MisconfigurationException(
                    f"lr='auto' cannot scale the module's scheduler: {reason}. Pass one of our schedules, such as "
                    "schedule='one_cycle', or leave lr out."
                )

    def peaks(self, lr: float) -> list[float]:
        """The peak of every group if ``lr`` is that of the run."""
        return [peak_of(group) for group in self._at(lr)]

    def _at(self, lr: float) -> list[dict[str, Any]]:
        return self._groups(lr) if self._groups is not None else rates_like(self._own, lr)

    def set(self, lr: float) -> None:
        """Make ``lr`` the peak of the groups and of every scheduler, at the start of the run."""
        for group, own in zip(self._optimizer.param_groups, self._at(lr), strict=True):
            for key in LEARNING_RATES:
                if key in own:
                    _assign(group, key, own[key])
                elif key == "initial_lr":
                    group.pop(key, None)
        if self._ours is None:
            self._held.scale(lr)
        else:
            config, factor = self._ours
            config.scheduler = OurSchedule(self._optimizer, factor)


def _assign(group: dict[str, Any], key: str, value: Any) -> None:
    if isinstance(group[key], torch.Tensor):
        group[key].fill_(value)
    else:
        group[key] = value


def check_checkpoint(states: list[Any], new: Optimizer, who: str) -> None:
    """A checkpoint of another optimizer cannot be resumed: say so before torch fails in its own words.

    Groups that were added in training, as finetuning callbacks add them, are for whoever added them to restore.
    """
    if not states:
        return
    saved = states[0]["param_groups"]
    ours = [len(group["params"]) for group in new.param_groups]
    theirs = [len(group["params"]) for group in saved]
    missing = sorted(set(new.defaults) - set(saved[0]))
    if ours != theirs[: len(ours)] or missing:
        what = f"lacks {', '.join(missing)}" if missing else f"has groups of {theirs} parameters, not {ours}"
        raise MisconfigurationException(
            f"{who} cannot resume this checkpoint: its optimizer is another one ({what}). Start a new run from its weights "
            "(load_from_checkpoint), or resume without the factory."
        )


def averages(row: OptimizerRow) -> bool:
    """Whether the optimizer trains at one point and is evaluated at another, as schedule-free ones do."""
    return hasattr(row.load(), "evaluation_weights")


def check_row(row: OptimizerRow, optimizer: str | None, lr: object, schedule: str, ema: float | None) -> None:
    """Settings that do not go together, known before a run starts."""
    asked = f"OptimizerFactory({optimizer!r}, ...)"
    if averages(row):
        if ema is not None:
            raise ValueError(f"ema={ema!r} with {asked}: {row.name} averages its weights itself; leave ema out.")
        if schedule not in ("keep", "constant"):
            raise ValueError(
                f"schedule={schedule!r} with {asked}: {row.name} takes the place of a schedule; leave schedule out, or "
                "name another optimizer, such as 'adamw'."
            )
    if lr == "auto" and (averages(row) or row.lr_free):
        raise ValueError(
            f"lr='auto' with {asked}: a range test says nothing about {row.name}, which "
            f"{'finds its learning rate itself' if row.lr_free else 'does well over a factor of ten'}; leave lr out."
        )


def check_named(optimizer: str | None, settings: Mapping[str, object]) -> None:
    """Settings of an optimizer need one by name."""
    given = [name for name, value in settings.items() if value is not None and (name, value) != ("lr", "auto")]
    if optimizer is None and given:
        raise ValueError(
            f"{', '.join(given)} cannot be set without an optimizer: OptimizerFactory() keeps the module's own. Name one, "
            f"such as OptimizerFactory('adamw', {given[0]}=...)."
        )
