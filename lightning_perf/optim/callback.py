"""OptimizerFactory: the optimizer of an unchanged module, kept and made faster, or replaced; averaged weights, too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

from lightning_perf.host import (
    MisconfigurationException,
    OptimizerSetup,
    PerfCallback,
    at_loader_door,
    at_optimizer_door,
    is_a,
    same_callback,
)
from lightning_perf.host.optimizer_door import loaded_optimizer_states
from lightning_perf.host.run_length import optimizer_steps
from lightning_perf.host.scheduler_door import at_scheduler_door
from lightning_perf.optim.averaging import Ema
from lightning_perf.optim.callback_evaluation import FitEvaluation
from lightning_perf.optim.callback_own_rates import left_behind, sets_rates
from lightning_perf.optim.callback_range_test import find_rate
from lightning_perf.optim.callback_replacement import (
    Replacement,
    RunRates,
    averages,
    check_checkpoint,
    check_named,
    check_row,
    warmup_within,
)
from lightning_perf.optim.fused import make_fused, sparse_gradient_parameters
from lightning_perf.optim.registry import build, get_optimizer
from lightning_perf.optim.schedules import get_schedule
from lightning_perf.optim.warmup import own_warmup, rate_and_power

_AUTO, _FALLBACK = "schedule_free_adamw", "adamw"


class OptimizerFactory(PerfCallback):
    """Keep the user's optimizer and make its step fused, replace it by name, or have one that needs no tuning.

    Without a name, optimizer, learning rate and schedulers stay the user's; only the step becomes torch's fused one, in
    place (on a CPU torch never chooses it itself). Trajectories agree with the unfused to a relative 1e-6. What has no
    fused kernel, sparse gradients or complex parameters is left alone, and the callback says so. Checkpoints hold the
    user's own flags.

    With a name, the optimizer is built anew over exactly the parameters that ``configure_optimizers`` selected. Groups
    are inferred from module types (no weight decay for norms, biases and embeddings), ratios between the user's learning
    rates stay. With ``schedule="keep"`` the user's schedulers move to the new optimizer, and the user's groups stay as
    they are, because schedulers are bound to them.

    ``"auto"`` is schedule-free AdamW: a fixed learning rate, a warm-up of its own, no schedule and no horizon. Where
    parameters are sharded and weights cannot be exchanged (FSDP, ModelParallel), it is AdamW with ``warmup_linear``.

    Averaged weights (``"auto"``, other schedule-free optimizers, ``ema``) are in place wherever the fit evaluates:
    validation, sanity check, every checkpoint, ``on_train_end``, and the module after ``fit``, also after an exception.
    Training never sees them. A checkpoint loads into the plain module; resumed with this callback it goes on bit for bit
    from the training weights in the callback's state. A weights-only checkpoint, a second ``fit`` and a fit after an
    exception start from the averaged weights.

    Args:
        optimizer: a name of :func:`lightning_perf.list_optimizers`, ``"auto"``, or ``None`` to keep the user's.
        lr: peak learning rate; default: the registry's for that optimizer. ``"auto"``: chosen by a range test before the
            first step, on a copy of the module and real batches, also for the user's own optimizer.
        weight_decay: default: the registry's.
        schedule: ``keep``, ``constant``, ``warmup_linear``, ``warmup_cosine``, ``wsd`` or ``one_cycle``, stepped per
            optimizer step over the run's real number of them. A schedule-free optimizer takes none: the module's own is
            left out.
        warmup: fraction of the run (below 1) or number of optimizer steps. A schedule-free optimizer takes a fraction as at
            least 60 steps, or a fifth of a short run, where the module has attention, layer norms or embeddings.
        ema: decay of an exponential moving average of the weights, such as 0.999, for evaluation and checkpoints.
        recalibrate: training batches on which, before each evaluation and save, a copy of the module gathers the running
            statistics of batch norms for the averaged weights; 0 leaves those of the training weights in place.
        groups: qualified-name pattern -> overrides such as ``{"lr": 1e-4}``; the first match wins.
        options: further arguments of the optimizer's class.

    Raises:
        ValueError: unknown optimizer, schedule or option; ``lr <= 0``; settings that need a named optimizer, or that do
            not go together; a schedule over an unknown number of steps.
        MisconfigurationException: a named optimizer under manual optimization, FSDP, ModelParallel or DeepSpeed; a
            scheduler that cannot drive the new optimizer, or whose rates cannot be scaled; averaged weights under a strategy
            that shards.

    Example::

        >>> import lightning_perf as lp
        >>> from lightning.pytorch import Trainer
        >>> factory = lp.OptimizerFactory("adamw", lr=3e-3, schedule="warmup_cosine", ema=0.999)
        >>> trainer = Trainer(callbacks=[factory], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        optimizer: str | None = None,
        *,
        lr: float | Literal["auto"] | None = None,
        weight_decay: float | None = None,
        schedule: str = "keep",
        warmup: int | float = 0.05,
        ema: float | None = None,
        recalibrate: int = 0,
        groups: Mapping[str, Mapping[str, Any]] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            optimizer=optimizer,
            lr=lr,
            weight_decay=weight_decay,
            schedule=schedule,
            warmup=warmup,
            ema=ema,
            recalibrate=recalibrate,
            groups=groups,
            options=options,
        )
        check_named(optimizer, {"lr": lr, "weight_decay": weight_decay, "groups": groups, "options": options})
        get_schedule(schedule)
        if ema is not None:
            Ema(ema)
        self.row = get_optimizer(_AUTO if optimizer == "auto" else optimizer) if optimizer is not None else None
        self.lr = None if lr == "auto" else lr
        if self.row is not None:
            check_row(self.row, optimizer, lr, schedule, ema)
            # The class's own checks, before a run starts.
            weight = [nn.Parameter(torch.zeros(1))]
            build(self.row.name, weight, lr=self.lr, weight_decay=weight_decay, options=options)
        if isinstance(recalibrate, bool) or not isinstance(recalibrate, int) or recalibrate < 0:
            raise ValueError(f"recalibrate={recalibrate!r} must be a number of batches, such as 20, or 0 for none.")
        self.finds_lr, self.recalibrate = lr == "auto", recalibrate
        self.weight_decay, self.schedule, self.warmup, self.ema = weight_decay, schedule, warmup, ema
        self.groups = {pattern: dict(overrides) for pattern, overrides in (groups or {}).items()}
        self.options = dict(options or {})
        self.essential = self.row is not None or schedule != "keep" or ema is not None or self.finds_lr
        self._evaluation: FitEvaluation | None = None

    def engage(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Stand at the optimizer door of a fit: replacements come before fusing."""
        if stage != "fit":
            return
        alone = self._check_alone(trainer)
        self._check_reach(trainer, pl_module)
        evaluation = self._evaluation = FitEvaluation(self.ema, self.recalibrate, self.say)
        undo = self.undo(trainer)

        def guest(setup: OptimizerSetup) -> None:
            if not setup.optimizers or is_a(setup.optimizers[0], "_MockOptimizer"):
                self.say("configure_optimizers returned no optimizer; nothing was changed.")
                return
            resumed = loaded_optimizer_states(trainer)
            rates = self._shape(trainer, pl_module, setup)
            if self.row is not None:
                check_checkpoint(resumed, setup.optimizers[0], repr(self))
            if self.finds_lr and resumed:
                self.say("the learning rate is the checkpoint's; no range test.")
            elif self.finds_lr:
                if self.row is None:  # of a replaced optimizer's, it is known by now
                    rates.check(pl_module)
                at_loader_door(trainer, undo, on_start=lambda: self._find_rate(trainer, pl_module, rates))
            self._fuse(trainer, pl_module, setup)
            if alone:
                evaluation.adopt(trainer, setup.optimizers, undo)

        undo.push(at_optimizer_door(trainer, guest, order=0 if self.essential else 1))

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Lightning's hook, after the optimizers exist and before their state is restored: the training weights."""
        if self._evaluation is not None:
            self._evaluation.start(pl_module, self.undo(trainer))

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Lightning's hook: add what training goes on from to this callback's state."""
        if self._evaluation is not None and self._evaluation.active:
            checkpoint.setdefault("callbacks", {})[self.state_key] = self._evaluation.state()

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Lightning's hook: take what a factory, of whatever arguments, has saved."""
        if self._evaluation is None or str(getattr(trainer.state.fn, "value", trainer.state.fn)) != "fit":
            return
        states = checkpoint.get("callbacks", {})
        saved = [state for key, state in states.items() if key.startswith(type(self).__qualname__)]
        saved = [state for state in saved if "training_weights" in state]
        self._evaluation.load(states.get(self.state_key, next(iter(saved), None)))

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_evaluation": None}

    def _check_alone(self, trainer: Any) -> bool:
        """Whether no other factory has a say in this fit's evaluation weights."""
        others = [c for c in trainer.callbacks if isinstance(c, OptimizerFactory) and c.essential]
        others = [other for other in others if not same_callback(other, self)]
        if self.essential and others:
            raise MisconfigurationException(
                f"{self!r} and {others[0]!r} both change the optimizer of one run; keep one of the two."
            )
        return not others

    def _check_reach(self, trainer: Any, pl_module: Any) -> None:
        if self.row is None and not self.finds_lr:
            return
        asked = f"OptimizerFactory({self._arguments['optimizer']!r})" if self.row is not None else "lr='auto'"
        if _is_sharded(trainer) and self._arguments["optimizer"] != "auto":
            raise MisconfigurationException(
                f"{asked} cannot choose parameter groups or rates under {type(trainer.strategy).__name__}, which re-creates "
                "the parameters; use DDP or a single device, or OptimizerFactory() to keep the module's own optimizer."
            )
        if not pl_module.automatic_optimization:
            raise MisconfigurationException(
                f"{asked} cannot replace the optimizers of {type(pl_module).__name__}, or their rates: it steps them by "
                "hand (automatic_optimization=False) and relies on their number and kind; use OptimizerFactory() to keep "
                "them and only make their steps fused."
            )

    def _shape(self, trainer: Any, pl_module: Any, setup: OptimizerSetup) -> RunRates:
        """Replace what is to be replaced in ``setup``."""
        replaced, schedule = None, self.schedule
        if self.row is not None:
            replacement = self._replacement(trainer, pl_module)
            schedule = replacement.schedule
            old, returned = setup.optimizers[0], [config.scheduler for config in setup.schedulers]
            replaced = replacement.apply(pl_module, setup, self.say)
            for line in left_behind(pl_module, old, returned):
                self.say(line)
        asked = self.row is not None or schedule != "keep" or self.finds_lr
        if asked and (line := sets_rates(pl_module)) is not None:
            self.say(line)
        rates = RunRates(setup, replaced)
        if schedule not in ("keep", "none"):
            if not pl_module.automatic_optimization:
                raise MisconfigurationException(
                    f"schedule={self.schedule!r} cannot be stepped for {type(pl_module).__name__}, which steps its "
                    "optimizers and schedulers by hand (automatic_optimization=False); use schedule='keep'."
                )
            rates.schedule(trainer, setup, schedule, self.warmup, self.say)
            # The module's own lr_scheduler_step calls its own schedulers, in a way that need not fit ours.
            self.undo(trainer).push(at_scheduler_door(pl_module, rates.is_ours))
        return rates

    def _replacement(self, trainer: Any, pl_module: Any) -> Replacement:
        assert self.row is not None
        row, schedule, options, infer = self.row, self.schedule, self.options, True
        lr = self.lr
        if _is_sharded(trainer):
            if self.groups:
                raise MisconfigurationException(
                    f"groups={self.groups!r} cannot be told apart under {type(trainer.strategy).__name__}, which re-creates "
                    "the parameters; use DDP or a single device, or leave groups out."
                )
            known = 0 < optimizer_steps(trainer) < float("inf")
            row, options, infer, lr = get_optimizer(_FALLBACK), {}, False, None
            schedule = "warmup_linear" if known else "constant"
            self.say(
                f"{type(trainer.strategy).__name__} keeps parameters in shards, whose weights cannot be exchanged for "
                f"evaluation: {row.name} with schedule {schedule} over the module's own groups instead of {_AUTO}."
            )
        elif averages(row):
            schedule = "none"
            if self._arguments["optimizer"] == "auto":
                rate, power = rate_and_power(pl_module)
                options = {"r": power, **options}
                lr = rate if lr is None else lr
            total = optimizer_steps(trainer)
            if "warmup_steps" not in options:
                known = 0 < total < float("inf")
                warmup = warmup_within(trainer, self.warmup, self.say)
                steps, why = own_warmup(pl_module, warmup, int(total) if known else None)
                options = {**options, "warmup_steps": steps}
                self.say(f"{row.name}: a warm-up of {steps} optimizer steps{why}, no schedule.")
        return Replacement(row, lr, self.weight_decay, schedule, self.groups, options, infer)

    def _find_rate(self, trainer: Any, pl_module: Any, rates: RunRates) -> None:
        """Run the range test after the last ``on_train_start`` hook, but not in a trial run of Lightning's finders."""
        if self not in trainer.callbacks:
            return
        lr = find_rate(trainer, pl_module, rates.peaks, self.say)
        if lr is not None:
            rates.set(lr)

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


def _is_sharded(trainer: Any) -> bool:
    return any(is_a(trainer.strategy, name) for name in ("FSDPStrategy", "ModelParallelStrategy"))
