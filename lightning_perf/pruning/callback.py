"""MagnitudePruning: zeros that are trained in, survive a resume, and are exact in every checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from weakref import ref

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from lightning_perf.host import (
    MisconfigurationException,
    PerfCallback,
    Progress,
    Stage,
    at_module_door,
    at_weights_door,
    follow_optimizers,
    is_a,
    is_accumulating,
    is_of_the_run,
    progress_of,
    same_callback,
    shadows_of,
)
from lightning_perf.pruning.callback_rewind import Rewind
from lightning_perf.pruning.cut import Cut
from lightning_perf.pruning.masks import pack, parse_pattern, unpack
from lightning_perf.pruning.pruner import Pruner
from lightning_perf.pruning.schedule import check_schedule, sparsity_at
from lightning_perf.pruning.sparsity import Sparsity, sparsity_of
from lightning_perf.pruning.targets import Target, Targets, find_targets

_DEFAULT_SPARSITY, _DEFAULT_END = 0.9, 0.7
_OF_THE_RUN = ("_pruner", "_targets", "_rewind", "_reached", "_logged", "_module", "_training", "_unfollowed")


class MagnitudePruning(PerfCallback):
    """Set the least important weights to zero while the module trains, and keep them zero.

    Weights of convolutions, linear layers, attention projections and recurrent layers; never biases, norms, embeddings
    or what is tied to one: these are left out, and the callback says so. What was pruned once stays pruned. After every
    step, whoever calls it, pruned weights and the optimizer's state for them are exactly zero; so are averages (``ema=``,
    schedule-free, Lightning's) and every checkpoint. The module gets no buffer and no other key; masks are packed bits in
    this callback's state, and a run resumed in the middle of the schedule goes on bit for bit. Rank 0 decides for all.

    Zeros make a compressed file smaller. They give no speed on a CPU, except for large linear layers in
    :func:`lightning_perf.pruning.csr_copy`: at batch 1 from about 95 % on, in batches of 64 from about 90 %; for 2:4 on a
    GPU see :func:`lightning_perf.pruning.semi_structured_copy`.

    Args:
        sparsity: share of zeros at the end, over all weights that are pruned; default 0.9, and for N:M what it amounts to.
        pattern: ``unstructured``, or N:M such as ``2:4``: of M neighbours along the inputs N stay.
        scope: ``global``, where the weights of all layers compete, or ``layer``, the same sparsity in each. N:M is
            decided group by group either way.
        schedule: ``cubic``, in many small steps from ``start`` to ``end``, or ``one_shot``, all of it at ``start``.
        start: fraction of the run at which pruning begins.
        end: fraction of the run from which on the sparsity is final.
        ignore: patterns of qualified names of parameters or modules to leave alone, such as ``["net.head", "*.0.weight"]``.
        criterion: ``magnitude``; ``movement``, how far the gradients so far moved a weight away from zero; ``random``.
        rewind_to: once the masks are final, put every surviving weight back to what it was at this early step (a whole
            number, or a fraction of the run), as for lottery tickets. Optimizers start afresh; schedulers go on.

    Raises:
        ValueError: a sparsity outside of [0, 1) or not that of the pattern; positions outside of the run or out of order;
            an unknown name; a pattern in ``ignore`` that matches nothing; nothing to prune; a run without an end.
        MisconfigurationException: two prunings of the same weights; a strategy that shards parameters.

    Source: Zhu and Gupta, https://arxiv.org/abs/1710.01878; Sanh et al., https://arxiv.org/abs/2005.07683; Frankle et al.,
    https://arxiv.org/abs/1912.05671. Deviations: :func:`sparsity_at` and :func:`add_movement_` say theirs; rewinding
    does not rewind the learning rate.

    Example::

        >>> import lightning_perf as lp
        >>> from lightning.pytorch import Trainer
        >>> pruning = lp.MagnitudePruning(0.8, ignore=["net.head"])
        >>> trainer = Trainer(callbacks=[pruning], logger=False, enable_checkpointing=False)
    """

    essential = True

    def __init__(
        self,
        sparsity: float | None = None,
        *,
        pattern: str = "unstructured",
        scope: str = "global",
        schedule: str = "cubic",
        start: float = 0.1,
        end: float = _DEFAULT_END,
        ignore: Sequence[str] = (),
        criterion: str = "magnitude",
        rewind_to: int | float | None = None,
    ) -> None:
        super().__init__(
            sparsity=sparsity,
            pattern=pattern,
            scope=scope,
            schedule=schedule,
            start=start,
            end=end,
            ignore=ignore if isinstance(ignore, str) else list(ignore),
            criterion=criterion,
            rewind_to=rewind_to,
        )
        self.n_of_m = parse_pattern(pattern)
        self.sparsity = _final_sparsity(sparsity, self.n_of_m, pattern)
        check_schedule(schedule, start, end)
        if schedule == "one_shot" and end != _DEFAULT_END:
            raise ValueError(f"end={end!r} means nothing to schedule='one_shot', which prunes at start; leave end out.")
        self.schedule, self.start = schedule, float(start)
        self.end = float(start if schedule == "one_shot" else end)
        self.ignore = ignore if isinstance(ignore, str) else tuple(ignore)
        self._options: dict[str, Any] = {"pattern": pattern, "scope": scope, "criterion": criterion}
        Pruner({}, **self._options)  # its own checks, before a run starts
        self._rewind_to = rewind_to
        if rewind_to is not None:
            Rewind(rewind_to).check(self.start, float("inf"))
        self._forget()

    def _forget(self) -> None:
        """Start without masks."""
        self._pruner: Pruner | None = None
        self._targets = Targets()
        self._rewind = None if self._rewind_to is None else Rewind(self._rewind_to)
        self._reached, self._logged = 0.0, 0.0
        self._module: Any = lambda: None
        self._training = False
        self._unfollowed: list[Target] = []

    @property
    def result(self) -> Sparsity:
        """Zeros per layer as they are now, and what was left out; ``result.section()`` is its part of a report.

        Raises:
            RuntimeError: no fit has begun yet.
        """
        if self._pruner is None:
            raise RuntimeError("MagnitudePruning has no result yet: it is there once trainer.fit has begun.")
        return sparsity_of(self._targets)

    def engage(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Stand at the module door of a fit, and behind every step of an optimizer."""
        if stage != "fit":
            return
        self._check_alone(trainer)
        if self._module() is not pl_module:
            self._forget()
        self._training = False
        undo = self.undo(trainer)

        def find(module: Any, checkpoint: Mapping[str, Any]) -> None:
            self._find(trainer, module, checkpoint)

        def follow(optimizer: Optimizer) -> Callable[[], None]:
            return optimizer.register_step_post_hook(self._after_step).remove

        def after_others(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            if self._training and self._pruner is not None and not is_of_the_run(trainer.strategy, optimizer):
                self._pruner.hold_optimizer(optimizer)

        undo.push(at_module_door(trainer, Stage.MASKS, find))
        undo.push(follow_optimizers(trainer, follow))
        undo.push(register_optimizer_step_post_hook(after_others).remove)
        # What is saved has zeros, whatever the module has written since the last step. Before averages are put in place.
        undo.push(at_weights_door(trainer, lambda state: state, around=lambda: self._held(trainer), order=-1))

    def _check_alone(self, trainer: Any) -> None:
        for other in trainer.callbacks:
            if is_a(other, "ModelPruning"):
                raise MisconfigurationException(
                    f"{type(other).__name__} of Lightning replaces the weights that MagnitudePruning masks; keep one of the "
                    "two."
                )

    def _find(self, trainer: Any, module: Any, checkpoint: Mapping[str, Any]) -> None:
        if self._pruner is not None and checkpoint:
            self._forget()  # the weights are about to be replaced
        if self._pruner is not None:
            return
        group = 1 if self.n_of_m is None else self.n_of_m[1]
        self._targets = find_targets(module, self.ignore, group=group)
        self._module = ref(module)
        self._pruner = Pruner(self._targets.found, seed=torch.initial_seed(), **self._options)
        for other in trainer.callbacks:
            if other is self or not isinstance(other, MagnitudePruning) or same_callback(other, self):
                continue
            both = sorted(self._targets.found.keys() & other._targets.found.keys()) if other._module() is module else []
            if both:
                raise MisconfigurationException(
                    f"{self!r} and {other!r} both prune {both[0]}; keep one of the two, or part the weights with ignore=."
                )
        left_out = self._targets.why_not()
        self.say(
            f"{self._pruner.total:,} weights in {len(self._targets.found)} tensors go to {self.sparsity:.4g} zeros"
            f"{f'; left out: {left_out}' if left_out else ''}."
        )

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Lightning's hook: the masks that this callback, of whatever arguments, has saved."""
        if self._pruner is None or str(getattr(trainer.state.fn, "value", trainer.state.fn)) != "fit":
            return
        states = checkpoint.get("callbacks", {})
        saved = [state for key, state in states.items() if key.startswith(type(self).__qualname__)]
        state = states.get(self.state_key, saved[0] if len(saved) == 1 else None)
        if state is None:
            self.say(
                "the checkpoint holds no masks (saved without MagnitudePruning); pruning starts anew from its weights."
            )
            return
        self._pruner.load_state_dict(state["pruner"])
        self._reached = state["reached"]
        if self._rewind is not None and state["rewind"] is not None:
            self._rewind.load_state_dict(state["rewind"])

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Lightning's hook: masks as packed bits, and what else a resumed run needs."""
        if self._pruner is not None:
            checkpoint.setdefault("callbacks", {})[self.state_key] = {
                "pruner": self._pruner.state_dict(),
                "reached": self._reached,
                "rewind": None if self._rewind is None else self._rewind.state_dict(),
            }

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Lightning's hook, when weights and optimizers are restored and Lightning's finders are done."""
        if self._pruner is None:
            return
        progress = progress_of(trainer, starting=True)
        if progress.total == float("inf"):
            raise ValueError(
                "the run has no end, so no position in it is known: set max_steps, or max_epochs with loaders that have a "
                "length."
            )
        if self._rewind is not None and trainer.fast_dev_run and self._rewind.is_late(self.start, progress.total):
            self.say(f"fast_dev_run is too short for rewind_to={self._rewind_to!r}; nothing is rewound in it.")
            self._rewind.done = True
        elif self._rewind is not None:
            self._rewind.check(self.start, progress.total)
            self._rewind.watch(pl_module, progress)
        followed = {p for one in trainer.strategy.optimizers for group in one.param_groups for p in group["params"]}
        self._unfollowed = [target for target in self._targets.found.values() if target.weight not in followed]
        self._training = True
        self._hold(trainer)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Lightning's hook: parameters that were made anew between two epochs keep their masks."""
        if self._pruner is not None and batch_idx == 0 and self._pruner.follow():
            self._hold(trainer)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Lightning's hook, after all steps of a batch: prune further if that is due."""
        if self._pruner is None:
            return
        if self._pruner.follow():  # the module has made a parameter anew
            self._hold(trainer)
        # What the module steps with an optimizer that Lightning does not know of.
        self._pruner.hold((target.weight, target.weight) for target in self._unfollowed)
        progress = progress_of(trainer)
        if self._rewind is not None:
            self._rewind.watch(pl_module, progress)
        due = self._due(progress)
        if due > self._reached and not is_accumulating(trainer):
            self._prune(trainer, due)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Lightning's hook: sparsity per layer goes to the loggers if it has changed."""
        if self._pruner is not None and self._reached > self._logged:
            self._logged = self._reached
            found = self.result
            scalars = {"sparsity": found.total, **{f"sparsity/{name}": found.of(name) for name in found.layers}}
            for logger in trainer.loggers:
                logger.log_metrics(scalars, step=trainer.fit_loop.epoch_loop._batches_that_stepped)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Lightning's hook: say how sparse each layer has become."""
        if self._pruner is None:
            return
        self._hold(trainer)
        found = self.result
        name = max(found.layers, key=found.of)
        least = min(found.layers, key=found.of)
        short = (
            "" if self._reached >= self.sparsity else f" (not {self.sparsity:.4g}: the fit ended before its schedule)"
        )
        self.say(
            f"{found.total:.2%} of {found.weights:,} weights are zero{short}, from {found.of(least):.0%} of {least} to "
            f"{found.of(name):.0%} of {name}. This makes a compressed file smaller; on a CPU it gives no speed, but for "
            "large linear layers in lightning_perf.pruning.csr_copy, from about 95 % on (90 % in large batches)."
        )

    def follow_cut(self, cut: Cut) -> None:
        """Keep the masks of what is left, and the weights to rewind to, once whole channels were taken out."""
        if self._pruner is not None:
            self._pruner.cut(cut)
        if self._rewind is not None:
            self._rewind.cut(cut)

    def forget_masks(self) -> None:
        """Start anew: weights of other shapes are about to be loaded, and a fit finds or loads the masks for them."""
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name not in _OF_THE_RUN}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget()

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._training and self._pruner is not None:
            self._pruner.after_step(optimizer)

    def _due(self, progress: Progress) -> float:
        return sparsity_at(
            progress.fraction, final=self.sparsity, schedule=self.schedule, start=self.start, end=self.end
        )

    def _prune(self, trainer: Any, sparsity: float) -> None:
        assert self._pruner is not None
        kept = self._pruner.decide(sparsity)
        if trainer.world_size > 1:
            packed = trainer.strategy.broadcast({name: pack(mask) for name, mask in kept.items()})
            kept = {name: unpack(packed[name], mask.shape) for name, mask in kept.items()}
        self._pruner.adopt(kept)
        self._reached = sparsity
        if self._rewind is not None and sparsity == self.sparsity and not self._rewind.done:
            self._rewind.back(trainer.lightning_module, trainer.optimizers, shadows_of(trainer))
            self.say(f"masks are final; weights are back at step {self._rewind.to}, and optimizers start afresh.")
        self._hold(trainer)

    def _held(self, trainer: Any) -> AbstractContextManager[None]:
        if self._training and self._pruner is not None:
            self._hold(trainer)
        return nullcontext()

    def _hold(self, trainer: Any) -> None:
        """Zero everywhere: weights, the state of optimizers, averages."""
        assert self._pruner is not None
        self._pruner.hold((target.weight, target.weight) for target in self._targets.found.values())
        for optimizer in trainer.strategy.optimizers:
            self._pruner.hold_optimizer(optimizer)
        self._pruner.hold(shadows_of(trainer))


def _final_sparsity(sparsity: float | None, n_of_m: tuple[int, int] | None, pattern: str) -> float:
    """The sparsity that was asked for, or that of the pattern."""
    own = _DEFAULT_SPARSITY if n_of_m is None else 1 - n_of_m[0] / n_of_m[1]
    if sparsity is None:
        return own
    if isinstance(sparsity, bool) or not isinstance(sparsity, (int, float)) or not 0 <= sparsity < 1:
        raise ValueError(f"sparsity={sparsity!r} must be a share of zeros in [0, 1), such as 0.9.")
    if n_of_m is not None and sparsity != own:
        raise ValueError(f"sparsity={sparsity!r} is not that of pattern={pattern!r}, {own:.4g}; leave sparsity out.")
    return float(sparsity)
