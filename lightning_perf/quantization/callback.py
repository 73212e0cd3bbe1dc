"""QuantizationAwareTraining: train any module with the rounding that it will be deployed with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lightning_perf.host import (
    MisconfigurationException,
    PerfCallback,
    Stage,
    at_module_door,
    at_step_door,
    takes_iterator,
)
from lightning_perf.host.step_door import StepName
from lightning_perf.quantization.broken import REASON, leave_in_float, sort_broken, spoken
from lightning_perf.quantization.callback_distill import Teacher
from lightning_perf.quantization.callback_schedule import Schedule, check_moment
from lightning_perf.quantization.kinds import NORMS
from lightning_perf.quantization.layers import Preparation
from lightning_perf.quantization.listing import entries, lines, section
from lightning_perf.quantization.prepare import find_norms_again, load_state, preparation, prepare, state_of
from lightning_perf.quantization.schemes import get_scheme
from lightning_perf.quantization.watch import Watch
from lightning_perf.report import Section

_OUTPUTS_EVERY = 8  # batches: ranges of outputs serve export only
_EVALUATIONS: tuple[StepName, ...] = ("validation_step", "test_step", "predict_step")


class QuantizationAwareTraining(PerfCallback):
    """Train with weights and activations rounded as they will be when deployed, so that the weights learn to stand it.

    Layers get a class that rounds in front of their own; parameters, ``state_dict``, hooks and subclasses' ``forward`` stay,
    and the module need not be traceable. Ranges of activations are averaged over training batches, never over those of
    validation or a sanity check, and equal on all ranks. They live in the callback's state: a checkpoint loads strictly
    into the plain module, and one of the plain module into this run. Batch norms are found by following tensors in the
    first step, and folded in export; evaluation computes layer and norm one after the other, which is the same to rounding.

    A layer whose range is unknown computes in float: all of them in the first step, the rest until a batch reaches them.
    Whatever stays in float is said with its reason, and so is the share of the work that is quantized. After the fit the
    module stays as it is, for ``export``; :func:`lightning_perf.unprepare` takes it back.

    Args:
        scheme: ``int8``, ``int8-dynamic``, ``int8-weight-only``, ``int4`` or ``float8``.
        ignore: qualified names of layers to leave in float, with ``*`` and ``?``; a name covers everything below it.
        overrides: such names -> another scheme, or ``"float"``.
        start: when rounding begins, as a fraction of the run or a number of batches; of a run that goes on from a
            checkpoint without this callback, what is left of it counts.
        freeze_observers: when ranges stop moving, alike.
        freeze_batch_norm: when batch norms begin to use their running statistics in training too, alike.
        distill: also pull the output of the last layer towards that of a frozen copy in float, taken when rounding begins:
            ``sum((rounded - float) ** 2) / sum(float ** 2)`` is added to the loss. It costs a forward pass and the memory
            of a second module, whose weights are in checkpoints, too.

    Raises:
        ValueError: an unknown scheme, a moment out of range, a pattern that matches no layer, no layer to quantize, a
            module that is prepared differently.
        MisconfigurationException: a strategy that shards parameters; a moment given as a fraction of a run without end;
            ``distill`` with manual optimization, or a ``training_step`` that takes ``dataloader_iter``.

    Example::

        >>> import lightning_perf as lp
        >>> from lightning.pytorch import Trainer
        >>> qat = lp.QuantizationAwareTraining("int8", ignore=["head"])
        >>> trainer = Trainer(callbacks=[qat], logger=False, enable_checkpointing=False)
    """

    essential = True
    _of_the_run = ("_modules", "_norms")

    def __init__(
        self,
        scheme: str = "int8",
        *,
        ignore: Sequence[str] = (),
        overrides: Mapping[str, str] | None = None,
        start: float | int = 0.0,
        freeze_observers: float | int = 0.8,
        freeze_batch_norm: float | int = 0.5,
        distill: bool = False,
    ) -> None:
        ignore = ignore if isinstance(ignore, str) else list(ignore)
        overrides = dict(overrides) if overrides else None
        super().__init__(
            scheme=scheme,
            ignore=ignore,
            overrides=overrides,
            start=start,
            freeze_observers=freeze_observers,
            freeze_batch_norm=freeze_batch_norm,
            distill=distill,
        )
        static = get_scheme(scheme).activations == "static"
        for name, value in (
            ("start", start),
            ("freeze_observers", freeze_observers),
            ("freeze_batch_norm", freeze_batch_norm),
        ):
            check_moment(name, value)
        if static and type(start) is type(freeze_observers) and start >= freeze_observers:
            raise ValueError(
                f"start={start} leaves no batch before freeze_observers={freeze_observers} to see ranges in; use a smaller "
                "start."
            )
        self.scheme, self.ignore, self.overrides, self.distill = scheme, ignore, overrides, distill
        self.schedule = Schedule(start, freeze_observers, freeze_batch_norm)
        self._modules: list[nn.Module] = []
        self._norms: list[nn.Module] = []
        self._teacher: Teacher | None = None
        self._joins = False  # whether the run began without this callback

    @property
    def _shared(self) -> Preparation:
        shared = preparation(self._modules[0])
        assert shared is not None
        return shared

    def section(self) -> Section:
        """Every layer with what became of it, as a part of a report; to be read during or after a run."""
        return section(self._modules[0])

    def engage(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Stand at the module door and at the first steps."""
        undo = self.undo(trainer)
        if self.distill and stage == "fit" and not pl_module.automatic_optimization:
            raise MisconfigurationException(
                f"distill=True adds to the loss that training_step returns, and {type(pl_module).__name__} steps its "
                "optimizers by hand (automatic_optimization=False); use distill=False."
            )
        if self.distill and stage == "fit" and takes_iterator(pl_module):
            raise MisconfigurationException(
                f"distill=True runs training_step on the same batch again, and {type(pl_module).__name__}.training_step "
                "takes its batches from dataloader_iter; use training_step(self, batch, batch_idx), or distill=False."
            )
        undo.push(at_module_door(trainer, Stage.FAKE_QUANTIZATION, self._prepare))
        if stage == "fit":
            undo.push(self._rest)
            undo.push(at_step_door(trainer, "training_step", lambda step: self._training_step(trainer, step)))
        for name in _EVALUATIONS:
            undo.push(at_step_door(trainer, name, lambda step: self._evaluation_step(trainer, step)))

    def _prepare(self, module: Any, checkpoint: Mapping[str, Any]) -> None:
        again = preparation(module) is not None
        prepare(module, self.scheme, ignore=self.ignore, overrides=self.overrides)
        if not again or (self._modules and self._modules[0] is not module):
            self._teacher = None  # that of another module, or of this one before unprepare
        self._modules = [module]
        if again:
            self.say("the module is prepared already; its ranges are kept.")
        self._joins = bool(checkpoint) and self._saved_in(checkpoint) is None
        if self._joins:
            self.say("the checkpoint holds no ranges of this callback; layers compute in float until they are known.")

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Lightning's hook: ranges, pairs, counts, and the weights of the teacher."""
        if not self._modules:
            return
        state = {**state_of(self._modules[0]), "first": self.schedule.first}
        if self._teacher is not None:
            state["teacher"] = self._teacher.state()
        checkpoint.setdefault("callbacks", {})[self.state_key] = state

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Lightning's hook: take them up again, whatever the arguments of the callback that saved them."""
        state = self._saved_in(checkpoint)
        if not self._modules or state is None:
            return
        load_state(self._modules[0], state)
        self.schedule.first = state.get("first", 0)
        if self.distill:
            self._teacher = Teacher(state["teacher"]) if "teacher" in state else None

    def _saved_in(self, checkpoint: Mapping[str, Any]) -> dict[str, Any] | None:
        states = checkpoint.get("callbacks", {})
        others = [state for key, state in states.items() if key.startswith(type(self).__qualname__)]
        return states.get(self.state_key, next((state for state in others if "ranges" in state), None))

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Lightning's hook: by now the length of the run is known, and trial steps of finders are over."""
        if not self._modules:
            return
        now = trainer.fit_loop.total_batch_idx + 1
        self.schedule.first = now if self._joins else min(self.schedule.first, now)
        self.schedule.resolve(trainer, self.say)
        find_norms_again(pl_module)
        self._shared.ranges.forget_batch()
        self._shared.ranges.move_to(pl_module.device)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Lightning's hook: switch rounding, ranges and batch norms for this batch."""
        if not self._modules:
            return
        shared, now = self._shared, trainer.fit_loop.total_batch_idx
        shared.quantizing = self.schedule.started(now)
        shared.observing = shared.quantizing and not self.schedule.observers_frozen(now)
        shared.observing_outputs = shared.observing and now % _OUTPUTS_EVERY == 0
        if self.schedule.norms_frozen(now):
            self._freeze_norms(pl_module)
        if self.distill and shared.quantizing:
            self._teacher = self._teacher or Teacher(None)
            self._teacher.see(pl_module, batch, batch_idx)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Lightning's hook: move the ranges, on all ranks alike."""
        if not self._modules:
            return
        shared = self._shared
        if shared.observing:
            shared.ranges.take_in(_maximum(trainer))
        shared.observing = shared.observing_outputs = False

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Lightning's hook: ranges that are not finite are said, or stop the run if there are no others."""
        if not self._modules:
            return
        ranges = self._shared.ranges
        lost, spared = sort_broken(pl_module, ranges)
        if lost:
            raise RuntimeError(
                f"infinite or NaN values in every batch: {', '.join(lost)}, so that there is no range of them; see how "
                "training diverges without QuantizationAwareTraining, or leave these layers out with ignore=[...]."
            )
        counts = zip(ranges.names, ranges.broken.tolist(), ranges.known, strict=True)
        some = [spoken(name) for name, count, known in counts if count and known]
        if some:
            self.say(f"batches with infinite or NaN values were left out of the ranges of {', '.join(some)}.")
        if spared:
            leave_in_float(spared)
            self.say(f"left in float, because {REASON} in every batch: {', '.join(layer.name for layer in spared)}.")
        ranges.broken.zero_()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Lightning's hook: layers that no batch has reached are said."""
        if not self._modules:
            return
        if not self._shared.quantizing:
            self.say(f"rounding has not begun: the run ended before start={self.schedule.start}.")
            return
        missed = [entry.name for entry in entries(pl_module) if entry.note == "no batch has reached it"]
        if missed:
            self.say(f"left in float, because no batch has reached it: {', '.join(missed)}.")

    def _training_step(self, trainer: Any, step: Callable[[], Any]) -> Any:
        shared = self._shared
        if shared.quantizing and not shared.watched["training"]:
            with Watch(self._modules[0], "training"):
                output = step()
            for line in lines(entries(self._modules[0])):
                self.say(line)
            return output
        if self._teacher is None or (not shared.observing and not shared.quantizing):
            return step()
        return self._teacher.taught(trainer, self._modules[0], shared.head, step)

    def _evaluation_step(self, trainer: Any, step: Callable[[], Any]) -> Any:
        watched = self._shared.watched
        if watched["evaluation"] or not watched["training"] or trainer.sanity_checking:
            return step()
        with Watch(self._modules[0], "evaluation"):
            return step()

    def _freeze_norms(self, module: nn.Module) -> None:
        for child in module.modules():
            if isinstance(child, NORMS) and child.training and child.running_mean is not None:
                child.training = False
                if child not in self._norms:
                    self._norms.append(child)

    def _rest(self) -> None:
        for norm in self._norms:
            norm.training = True
        self._norms = []
        shared = preparation(self._modules[0]) if self._modules else None
        if shared is not None:
            find_norms_again(self._modules[0])
            shared.observing = shared.observing_outputs = False
            shared.quantizing = True


def _maximum(trainer: Any) -> Callable[[torch.Tensor], torch.Tensor] | None:
    if trainer.world_size == 1:
        return None
    return lambda ends: trainer.strategy.reduce(ends, reduce_op="max")
