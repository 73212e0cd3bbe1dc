"""OptimizerFactory: the optimizer of an unchanged module, kept and made faster, or replaced."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_perf.host import (
    MisconfigurationException,
    OptimizerSetup,
    PerfCallback,
    at_optimizer_door,
    is_a,
    same_callback,
)
from lightning_perf.host.optimizer_door import loaded_optimizer_states, scheduler_config
from lightning_perf.optim.cost import Costly
from lightning_perf.optim.fused import make_fused, sparse_gradient_parameters
from lightning_perf.optim.param_groups import describe_groups, infer_groups
from lightning_perf.optim.rebind import cannot_rebind, groups_like, rebind, reference_lr
from lightning_perf.optim.registry import build, get_optimizer
from lightning_perf.optim.schedules import get_schedule, make_factor, resolve_warmup


class OptimizerFactory(PerfCallback):
    """Keep the user's optimizer and make its step fused, or replace it by name.

    Without a name, optimizer, learning rate and schedulers stay the user's; only the step becomes torch's fused one, in
    place (on a CPU torch never chooses it itself). Trajectories agree with the unfused to a relative 1e-6. What has no
    fused kernel, sparse gradients or complex parameters is left alone, and the callback says so. Checkpoints hold the
    user's own flags.

    With a name, the optimizer is built anew over exactly the parameters that ``configure_optimizers`` selected. Groups
    are inferred from module types (no weight decay for norms, biases and embeddings), ratios between the user's learning
    rates stay. With ``schedule="keep"`` the user's schedulers move to the new optimizer, and the user's groups stay as
    they are, because schedulers are bound to them.

    Args:
        optimizer: a name of :func:`lightning_perf.list_optimizers`, or ``None`` to keep the user's.
        lr: peak learning rate; default: the registry's for that optimizer.
        weight_decay: default: the registry's.
        schedule: ``keep``, ``constant``, ``warmup_linear``, ``warmup_cosine``, ``wsd`` or ``one_cycle``, stepped per
            optimizer step over the run's real number of them.
        warmup: fraction of the run (below 1) or number of optimizer steps.
        groups: qualified-name pattern -> overrides such as ``{"lr": 1e-4}``; the first match wins.
        options: further arguments of the optimizer's class.

    Raises:
        ValueError: unknown optimizer, schedule or option; ``lr <= 0``; settings that need a named optimizer; a schedule
            over an unknown number of steps.
        MisconfigurationException: a named optimizer under manual optimization, FSDP, ModelParallel or DeepSpeed; a
            scheduler that cannot drive the new optimizer.

    Example::

        >>> import lightning_perf as lp
        >>> from lightning.pytorch import Trainer
        >>> factory = lp.OptimizerFactory("adamw", lr=3e-3, schedule="warmup_cosine")
        >>> trainer = Trainer(callbacks=[factory], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        optimizer: str | None = None,
        *,
        lr: float | None = None,
        weight_decay: float | None = None,
        schedule: str = "keep",
        warmup: int | float = 0.05,
        groups: Mapping[str, Mapping[str, Any]] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            optimizer=optimizer,
            lr=lr,
            weight_decay=weight_decay,
            schedule=schedule,
            warmup=warmup,
            groups=groups,
            options=options,
        )
        _check(optimizer, {"lr": lr, "weight_decay": weight_decay, "groups": groups, "options": options})
        get_schedule(schedule)
        self.row = get_optimizer(optimizer) if optimizer is not None else None
        if self.row is not None:  # the class's own checks, before a run starts
            build(self.row.name, [nn.Parameter(torch.zeros(1))], lr=lr, weight_decay=weight_decay, options=options)
        self.lr, self.weight_decay, self.schedule, self.warmup = lr, weight_decay, schedule, warmup
        self.groups = {pattern: dict(overrides) for pattern, overrides in (groups or {}).items()}
        self.options = dict(options or {})
        self.essential = self.row is not None or schedule != "keep"

    def engage(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Stand at the optimizer door of a fit: replacements come before fusing."""
        if stage != "fit":
            return
        self._check_alone(trainer)
        if self.row is not None:
            self._check_reach(trainer, pl_module)

        def guest(setup: OptimizerSetup) -> None:
            if not setup.optimizers or is_a(setup.optimizers[0], "_MockOptimizer"):
                self.say("configure_optimizers returned no optimizer; nothing was changed.")
                return
            if self.row is not None:
                self._replace(pl_module, setup)
                _check_checkpoint(loaded_optimizer_states(trainer), setup.optimizers[0], self)
            if self.schedule != "keep":
                self._schedule(trainer, pl_module, setup)
            self._fuse(trainer, pl_module, setup)

        self.undo(trainer).push(at_optimizer_door(trainer, guest, order=0 if self.essential else 1))

    def _check_alone(self, trainer: Any) -> None:
        others = [c for c in trainer.callbacks if isinstance(c, OptimizerFactory) and c.essential]
        others = [other for other in others if not same_callback(other, self)]
        if self.essential and others:
            raise MisconfigurationException(
                f"{self!r} and {others[0]!r} both change the optimizer of one run; keep one of the two."
            )

    def _check_reach(self, trainer: Any, pl_module: Any) -> None:
        asked = f"OptimizerFactory({self._arguments['optimizer']!r})"
        for name in ("FSDPStrategy", "ModelParallelStrategy"):
            if is_a(trainer.strategy, name):
                raise MisconfigurationException(
                    f"{asked} cannot choose parameter groups under {name}, which re-creates the parameters; use DDP or a "
                    "single device, or OptimizerFactory() to keep the module's own optimizer."
                )
        if not pl_module.automatic_optimization:
            raise MisconfigurationException(
                f"{asked} cannot replace the optimizers of {type(pl_module).__name__}, which steps them by hand "
                "(automatic_optimization=False) and relies on their number and kind; use OptimizerFactory() to keep them "
                "and only make their steps fused."
            )

    def _replace(self, pl_module: Any, setup: OptimizerSetup) -> None:
        assert self.row is not None
        old = setup.optimizers[0]
        if not reference_lr(old) > 0:
            raise MisconfigurationException(
                f"{type(old).__name__} of {type(pl_module).__name__} has learning rate {reference_lr(old)}: the module sets "
                "it itself, and no ratio can be carried over; use OptimizerFactory() to keep the optimizer."
            )
        default = self.row.defaults.get("lr")
        lr = self.lr if self.lr is not None else float(default if isinstance(default, (int, float)) else 1e-3)
        decay = self.weight_decay
        if decay is None and isinstance(self.row.defaults.get("weight_decay"), (int, float)):
            decay = float(self.row.defaults["weight_decay"])  # type: ignore[arg-type]
        keep_groups = self.schedule == "keep" and bool(setup.schedulers)
        if keep_groups:
            if self.groups:
                raise MisconfigurationException(
                    f"groups={self.groups!r} cannot change the groups to which the module's own scheduler is bound; pass a "
                    "schedule of ours (such as schedule='warmup_cosine'), or leave groups out."
                )
            groups = groups_like(old, lr=lr, weight_decay=decay)
        else:
            groups = _inferred(pl_module, old, lr=lr, weight_decay=decay, patterns=self.groups)
        if self.row.grouping is not None:
            groups = self.row.grouping(pl_module, groups, split=not keep_groups)
        new = build(self.row.name, groups, lr=lr, weight_decay=decay, options=self.options)
        if self.schedule == "keep":
            for config in setup.schedulers:
                reason = cannot_rebind(config.scheduler, new)
                if reason is not None:
                    raise MisconfigurationException(
                        f"schedule='keep' cannot move the module's scheduler: {reason}. Pass one of our schedules, such as "
                        "schedule='one_cycle', or an optimizer of the same kind."
                    )
                rebind(config.scheduler, old, new)
        else:
            setup.schedulers.clear()
        setup.optimizers[0] = new
        kept = "; the module's groups and scheduler were kept" if keep_groups else ""
        self.say(
            f"{type(old).__name__} (lr {reference_lr(old):g}) replaced by {self.row.name} (lr {lr:g}"
            f"{', the default' if self.lr is None else ''}){kept}.\n{describe_groups(new.param_groups)}"
        )
        if isinstance(new, Costly):
            self.say(new.cost_note())

    def _schedule(self, trainer: Any, pl_module: Any, setup: OptimizerSetup) -> None:
        if not pl_module.automatic_optimization:
            raise MisconfigurationException(
                f"schedule={self.schedule!r} cannot be stepped for {type(pl_module).__name__}, which steps its optimizers "
                "and schedulers by hand (automatic_optimization=False); use schedule='keep'."
            )
        total = trainer.estimated_stepping_batches
        factor = make_factor(self.schedule, total, self.warmup)
        optimizer = setup.optimizers[0]
        _forget_schedulers(optimizer, [config.scheduler for config in setup.schedulers])
        replaced = ", ".join(type(config.scheduler).__name__ for config in setup.schedulers)
        setup.schedulers[:] = [scheduler_config(trainer, LambdaLR(optimizer, factor))]
        warmup = ""
        if get_schedule(self.schedule).needs_total:
            warmup = f" over {total} optimizer steps, {resolve_warmup(self.warmup, int(total))} of them warm-up"
        instead = f" in place of the module's {replaced}" if replaced else ""
        self.say(f"schedule {self.schedule}{warmup}{instead}.")

    def _fuse(self, trainer: Any, pl_module: Any, setup: OptimizerSetup) -> None:
        sparse = sparse_gradient_parameters(pl_module)
        for optimizer in setup.optimizers:
            outcome = make_fused(optimizer, sparse=sparse)
            self.undo(trainer).push(outcome.undo)
            name = type(optimizer).__name__
            if outcome.changed:
                rest = f", but for a part of it: {outcome.reason}" if outcome.reason else ""
                self.say(f"{name}: the step is now fused{rest}.")
            else:
                self.say(f"{name} is left as it is: {outcome.reason}.")


def _forget_schedulers(optimizer: Optimizer, schedulers: list[Any]) -> None:
    """Put the peaks back that schedulers have scaled, and the momenta that they cycle."""
    cycled = any(getattr(scheduler, "cycle_momentum", False) for scheduler in schedulers)
    for group in optimizer.param_groups:
        group["lr"] = _initial(group)
        for key in ("initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum"):
            group.pop(key, None)
        for key in ("betas", "momentum"):
            if cycled and key in group:
                group[key] = optimizer.defaults[key]


def _check_checkpoint(states: list[Any], new: Optimizer, factory: OptimizerFactory) -> None:
    """A checkpoint of another optimizer cannot be resumed: say so before torch fails in its own words."""
    if not states:
        return
    saved = states[0]["param_groups"]
    ours = [len(group["params"]) for group in new.param_groups]
    theirs = [len(group["params"]) for group in saved]
    missing = sorted(set(new.defaults) - set(saved[0]))
    if ours != theirs or missing:
        what = f"lacks {', '.join(missing)}" if missing else f"has groups of {theirs} parameters, not {ours}"
        raise MisconfigurationException(
            f"{factory!r} cannot resume this checkpoint: its optimizer is another one ({what}). Start a new run from its "
            "weights (load_from_checkpoint), or resume without the factory."
        )


def _check(optimizer: str | None, settings: Mapping[str, object]) -> None:
    given = [name for name, value in settings.items() if value is not None]
    if optimizer is None and given:
        raise ValueError(
            f"{', '.join(given)} cannot be set without an optimizer: OptimizerFactory() keeps the module's own. Name one, "
            f"such as OptimizerFactory('adamw', {given[0]}=...)."
        )


def _inferred(
    module: Any, old: Optimizer, *, lr: float, weight_decay: float | None, patterns: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Inferred groups over the parameters of ``old``, split further where the user's learning rates differ."""
    peak = reference_lr(old)
    ratio = {id(p): _initial(group) / peak for group in old.param_groups for p in group["params"]}
    chosen = [p for group in old.param_groups for p in group["params"]]
    split: list[dict[str, Any]] = []
    for group in infer_groups(module, weight_decay=weight_decay or 0.0, groups=patterns, parameters=chosen):
        ratios = sorted({ratio[id(p)] for p in group["params"]}, reverse=True)
        for one in ratios:
            members = [i for i, p in enumerate(group["params"]) if ratio[id(p)] == one]
            part = dict(group)
            part["params"] = [group["params"][i] for i in members]
            part["param_names"] = [group["param_names"][i] for i in members]
            part.setdefault("lr", lr * one)
            if len(ratios) > 1:
                part["name"] = f"{group['name']} (lr x{one:g})"
            split.append(part)
    return split


def _initial(group: Mapping[str, Any]) -> float:
    return float(group.get("max_lr", group.get("initial_lr", group["lr"])))
