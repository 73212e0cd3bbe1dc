"""ChannelPruning: whole channels are taken out while the module trains, and what is left is a smaller, faster module."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from weakref import ref

from torch import Tensor, nn

from lightning_perf.host import (
    MisconfigurationException,
    PerfCallback,
    Stage,
    at_module_door,
    averaged_modules,
    fraction_done,
    is_a,
    muted,
    offered_shadows,
    same_callback,
    takes_iterator,
    wrap_again,
)
from lightning_perf.pruning.callback import MagnitudePruning
from lightning_perf.pruning.callback_entries import Entries
from lightning_perf.pruning.callback_measure import MEASURES, Measure, agreed
from lightning_perf.pruning.callback_regularize import Pull, check_strength
from lightning_perf.pruning.callback_step import loss_of, quiet_copy, small_part, value_of
from lightning_perf.pruning.channels import Channels, meet, reasons
from lightning_perf.pruning.cut import Cut, kept_part
from lightning_perf.pruning.load import pruned_state, state_of_weights
from lightning_perf.pruning.shapes import reshape, shapes_of, tensors_of

_OF_A_MODULE = ("_module", "_pull", "_past")


class ChannelPruning(PerfCallback):
    """Take the least important channels out of a module, so that it computes less and stays an ordinary dense module.

    At the first batch of an epoch the module is traced through its own ``training_step`` on a copy. Groups of channels that
    depend on each other are found with Torch-Pruning, and each is tried: it counts only if taking channels out gives the
    same loss as setting them to zero, and breaks no other way into the module (a second batch, the hooks around a step,
    where a module may update a teacher of its own, evaluation, prediction). What is left out is said with the reason. Then
    the lowest channels by weight norm go until the target is met. Parameters keep their identity; optimizer state, averages
    (``ema=``, Lightning's) and masks are cut along, DDP wraps anew. A checkpoint carries the shapes: with this callback
    ``fit``, ``validate``, ``test`` and ``predict`` load it, and one of before a cut brings the channels back; without a
    Trainer :func:`lightning_perf.load_pruned` loads it.

    Args:
        target: what should be left of ``measure``, such as 0.5.
        measure: ``macs`` of a forward pass, ``parameters``, or ``latency`` of a call of ``forward`` here, in whatever serves
            the whole module fastest: eager, or an installed runtime of :func:`lightning_perf.export`.
        steps: cut in so many steps, at the beginning of as many epochs, each by the same factor.
        at: fraction of the run after which the first epoch that begins brings the first cut; 0 cuts before the first step.
        round_to: channels that stay in a group are a multiple of this (the width of vector units).
        ignore: patterns of qualified names of layers whose outputs stay.
        regularize: until the last cut, pull channels towards zero by the gradient of ``regularize * sum of ||w||`` over the
            channels that a cut may take, ``w`` being all weights that would go with one (:class:`GroupLasso`). It is added
            right before each optimizer step: after clipping, not in the logged loss, not divided by accumulation.

    Raises:
        ValueError: an argument out of its range; a run with too few epochs; a target that cannot be met, with the best
            point and what stopped it; a checkpoint of other shapes.
        MisconfigurationException: a compiled module; a ``training_step`` that gives no loss or takes ``dataloader_iter``;
            two prunings of channels, or Lightning's; a strategy that shards.

    Source: Fang et al., https://arxiv.org/abs/2301.12900. Deviation: its groups are believed only after a run.

    Example::

        >>> import lightning_perf as lp
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[lp.ChannelPruning(0.5)], logger=False, enable_checkpointing=False)
    """

    essential = True

    def __init__(
        self,
        target: float,
        *,
        measure: str = "macs",
        steps: int = 1,
        at: float = 0.5,
        round_to: int = 8,
        ignore: Sequence[str] = (),
        regularize: float = 0.0,
    ) -> None:
        super().__init__(
            target=target, measure=measure, steps=steps, at=at, round_to=round_to,
            ignore=ignore if isinstance(ignore, str) else list(ignore), regularize=regularize,
        )  # fmt: skip
        if isinstance(target, bool) or not isinstance(target, (int, float)) or not 0 < target < 1:
            raise ValueError(
                f"target={target!r} must be the share of {measure} that is left, between 0 and 1, such as 0.5."
            )
        if measure not in MEASURES:
            raise ValueError(f"measure={measure!r} is unknown; pass one of {', '.join(map(repr, MEASURES))}.")
        for name, value in (("steps", steps), ("round_to", round_to)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r} must be a whole number of at least 1.")
        if isinstance(at, bool) or not isinstance(at, (int, float)) or not 0 <= at < 1:
            raise ValueError(f"at={at!r} must be a fraction of the run, from 0 to below 1, such as 0.5.")
        check_strength(regularize, at, steps)
        self.regularize = regularize
        self.target, self.measure, self.steps, self.at, self.round_to = target, measure, steps, at, round_to
        self.ignore = ignore if isinstance(ignore, str) else tuple(ignore)
        self._forget()

    def _forget(self) -> None:
        self._module: Any = lambda: None
        self._active = False
        self._done, self._left = 0, 1.0
        self._past: list[dict[str, Any]] = []
        self.left_out: dict[str, str] = {}
        self._pull = Pull(self.regularize)

    def engage(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Stand at the module door, where the shapes of a checkpoint are put in place before its weights."""
        self._check_alone(trainer)
        if stage == "fit":
            _check_uncompiled(pl_module)  # and again once callbacks of other rooms have done what they do
            _check_batches(pl_module)
        if self._module() is not pl_module:
            self._forget()
            self._module = ref(pl_module)
        self._active = True
        self.undo(trainer).push(setattr, self, "_active", False)

        def restore(module: Any, checkpoint: Mapping[str, Any]) -> None:
            self._restore(trainer, module, checkpoint)

        self.undo(trainer).push(at_module_door(trainer, Stage.STRUCTURE, restore))
        if stage == "fit" and self.regularize:
            self.undo(trainer).push(self._pull.stand_at(trainer))

    def _restore(self, trainer: Any, module: Any, checkpoint: Mapping[str, Any]) -> None:
        """Shapes of a checkpoint that is about to be loaded: of behind a cut, or of before one that was made since."""
        state = pruned_state(checkpoint, self.state_key)
        if state is None:
            state = state_of_weights(checkpoint.get("state_dict", {}), module, self._past)
        if state is None:
            return
        if "left" not in state:
            raise ValueError(
                "this checkpoint of ChannelPruning was saved by an older version, whose state ends at the shapes, and "
                "training cannot go on from it; load its weights with lightning_perf.load_pruned(module, path) instead."
            )
        before = _size(module)
        changed = reshape(module, state["shapes"])
        if _size(module) > before:
            cut = f"cut {state['done'] + 1}" if state["done"] else "the first cut"
            self.say(f"the checkpoint is of before {cut}, and the module has the channels back that it had then.")
        if changed:
            self._drop_old_shapes(trainer, [tensor for name, tensor in tensors_of(module) if name in changed])
        for average in averaged_modules(trainer):
            reshape(average, state["shapes"], like=module)
        self._left, self._done, self._pull.members = state["left"], state["done"], state["members"]

    def _drop_old_shapes(self, trainer: Any, changed: Iterable[Tensor]) -> None:
        """What an earlier fit keeps of parameters that have other shapes now; a checkpoint brings its own."""
        for tensor in changed:
            for optimizer in trainer.strategy.optimizers:
                optimizer.state.pop(tensor, None)
        for other in trainer.callbacks:
            if isinstance(other, MagnitudePruning):
                other.forget_masks()

    def _check_alone(self, trainer: Any) -> None:
        for other in trainer.callbacks:
            if is_a(other, "ModelPruning"):
                raise MisconfigurationException(
                    f"{type(other).__name__} of Lightning replaces the weights that ChannelPruning cuts; use one of "
                    "the two, or MagnitudePruning for zeros in what is left."
                )
            if isinstance(other, ChannelPruning) and not same_callback(other, self):
                raise MisconfigurationException(
                    f"{self!r} and {other!r} both cut the module; use one, with steps= for several cuts."
                )

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Lightning's hook: the shapes, so that the weights can be loaded."""
        if self._module() is pl_module:
            checkpoint.setdefault("callbacks", {})[self.state_key] = self._state(pl_module)

    def _state(self, module: Any) -> dict[str, Any]:
        members = self._pull.members
        return {"shapes": shapes_of(module), "done": self._done, "left": self._left, "members": members}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Lightning's hook: whether the run has the epochs that it takes, and the module can be cut at all."""
        if not self._active:
            return
        epochs = trainer.max_epochs
        first = math.ceil(self.at * epochs) if epochs not in (None, -1) else 0
        if self._done < self.steps and epochs not in (None, -1) and first + self.steps > epochs:
            if not trainer.fast_dev_run:
                raise ValueError(
                    f"at={self.at:g} with steps={self.steps} needs {self.steps} epochs that begin at {self.at:.0%} of the "
                    f"run or later, and of max_epochs={epochs} there are {max(0, epochs - first)}; cut earlier, or train "
                    "longer."
                )
            cuts = "nothing" if self.at else "only the first of them"
            self.say(
                f"fast_dev_run is one epoch, too short for at={self.at:g}, steps={self.steps}; {cuts} is cut in it."
            )
        _check_uncompiled(pl_module)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Lightning's hook: cut, at the first batch of an epoch; find what to pull, at the first batch of all."""
        # Not at the start of the epoch: Lightning is silent there when it resumes from the last batch of the one before.
        if self._active and batch_idx == 0 and self._done < self.steps and fraction_done(trainer, 0) >= self.at:
            self._cut(trainer, pl_module, batch)
        if self._active and self.regularize and self._done < self.steps:
            self._pull.begin(trainer, pl_module, lambda: self._channels(trainer, pl_module, batch))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Lightning's hook: say so if the run has ended before a cut."""
        if self._active and self._done < self.steps and not trainer.fast_dev_run:
            self.say(
                f"{self._done} of {self.steps} cuts were made: the fit ended before the epochs that bring the others."
            )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name not in _OF_A_MODULE}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget()

    def _channels(self, trainer: Any, pl_module: Any, batch: Any) -> Channels:
        few = small_part(pl_module, batch)
        channels = Channels(
            pl_module, lambda clone: loss_of(clone, few), self.ignore,
            round_to=self.round_to, duplicate=quiet_copy, saved=pl_module.state_dict().keys(),
        )  # fmt: skip
        with muted(trainer):
            channels.find()
            channels.scores, channels.left_out = agreed(trainer, (channels.scores, channels.left_out))
            channels.sift(Entries(trainer, pl_module, few), lambda found: agreed(trainer, found))
        channels.loss = lambda clone: loss_of(clone, batch)  # to measure
        return channels

    def _cut(self, trainer: Any, pl_module: Any, batch: Any) -> None:
        channels = self._channels(trainer, pl_module, batch)
        channels.require_some()
        measure = Measure(self.measure, trainer, channels, batch, self.say)
        target, before = self.target ** ((self._done + 1) / self.steps), self._left
        cut, reached = meet(channels, target, lambda cut: before * measure(cut), trials=measure.trials)
        reason = agreed(trainer, channels.check(cut, lambda clone: value_of(clone, batch)))
        with muted(trainer):
            reason = reason or agreed(trainer, channels.breaks(cut))
        if reason is not None:
            raise MisconfigurationException(
                f"the groups of {type(pl_module).__name__} can be cut one by one but not together ({reason}); use ignore= "
                "to leave some of them out."
            )
        cut = Cut(*agreed(trainer, (cut.keep, cut.sizes)))  # ranks see other batches
        for parameter, shadow in offered_shadows(trainer):
            name = next(name for name, one in pl_module.named_parameters() if one is parameter)
            shadow.data = kept_part(shadow.data, cut.keep.get(name, {}))
        self._past.append(self._state(pl_module))
        cut.apply(pl_module, trainer.strategy.optimizers)
        for average in averaged_modules(trainer):
            cut.apply(average)
        for other in trainer.callbacks:
            if isinstance(other, MagnitudePruning):
                other.follow_cut(cut)
        wrap_again(trainer)
        self._pull.end()
        self._left, self._done = reached, self._done + 1
        self.left_out = channels.left_out
        left_out = f" Left out: {reasons(channels.left_out)}." if channels.left_out else ""
        self.say(f"{self.measure} cut from {before:.3g} to {reached:.3g} of the whole (target {target:.3g}).{left_out}")


def _size(module: nn.Module) -> int:
    return sum(tensor.numel() for _, tensor in tensors_of(module))


def _check_batches(pl_module: Any) -> None:
    if takes_iterator(pl_module):
        raise MisconfigurationException(
            f"{type(pl_module).__name__}.training_step takes its batches from dataloader_iter, so that there is none to "
            "trace the module with; use training_step(self, batch, batch_idx) with ChannelPruning."
        )


def _check_uncompiled(pl_module: Any) -> None:
    parts = any(one._compiled_call_impl is not None or "_orig_mod" in one._modules for one in pl_module.modules())
    if parts or getattr(pl_module, "_compiler_ctx", None) is not None:  # the latter of a compiled LightningModule
        raise MisconfigurationException(
            f"{type(pl_module).__name__} is compiled for its shapes; use ChannelPruning without compile, and compile "
            "the pruned module afterwards."
        )
