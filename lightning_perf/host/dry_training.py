"""Train a silent copy of the module for a few steps and leave no trace of it in the run."""

from __future__ import annotations

import copy
import importlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_perf._copying import deep_copy
from lightning_perf.host.dry_run import call_step, silent_copy, takes_iterator
from lightning_perf.host.loader_door import fresh_batches, preserved_generators
from lightning_perf.host.namespaces import MisconfigurationException, namespace_of
from lightning_perf.host.rng import preserved_rng
from lightning_perf.host.run_length import accumulation_in


class DryTraining:
    """A copy of the module and of its optimizer, stepped on real batches as the run would step them.

    Followed are: mixed precision, accumulation, gradient clipping, ``configure_gradient_clipping``, ``backward``, and
    the mean over the ranks of a data-parallel strategy. Not called are hooks of callbacks and the module's
    ``optimizer_step`` and ``on_*`` hooks.
    """

    def __init__(self, trainer: Any, pl_module: Any, optimizer: Optimizer) -> None:
        self._trainer = trainer
        memo: dict[int, Any] = {}
        self.module = silent_copy(pl_module, memo)
        self.optimizer: Optimizer = deep_copy(optimizer, memo)
        for group, own in zip(self.optimizer.param_groups, optimizer.state_dict()["param_groups"], strict=True):
            group.update({key: own[key] for key in ("fused", "foreach") if key in own})
        self._scaler = copy.deepcopy(getattr(trainer.precision_plugin, "scaler", None))
        self._batches = fresh_batches(trainer)
        self._index = 0

    def step(self) -> float | None:
        """One optimizer step; returns the mean loss of its batches before it, or ``None`` if there was no loss."""
        trainer, optimizer = self._trainer, self.optimizer
        optimizer.zero_grad()
        losses = []
        every = accumulation_in(trainer, trainer.current_epoch)
        for _ in range(every):
            loss = self._loss(next(self._batches))
            if loss is None:
                continue
            losses.append(loss.detach())
            loss = loss / every
            self.module.backward(loss if self._scaler is None else self._scaler.scale(loss))
        if not losses:
            return None
        if trainer.world_size > 1:
            self._average_gradients()
        if self._scaler is not None:
            self._scaler.unscale_(optimizer)
        self.module.configure_gradient_clipping(
            optimizer,
            gradient_clip_val=trainer.gradient_clip_val,
            gradient_clip_algorithm=trainer.gradient_clip_algorithm,
        )
        if self._scaler is None:
            optimizer.step()
        else:
            self._scaler.step(optimizer)
            self._scaler.update()
        return float(trainer.strategy.reduce(torch.stack(losses).float().mean(), reduce_op="mean"))

    def _loss(self, batch: Any) -> Tensor | None:
        output = _training_step(self._trainer, self.module, batch, self._index)
        self._index += 1
        return output["loss"] if isinstance(output, Mapping) else output

    def _average_gradients(self) -> None:
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.requires_grad:
                    gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                    parameter.grad = self._trainer.strategy.reduce(gradient, reduce_op="mean")


def _training_step(trainer: Any, module: Any, batch: Any, index: int) -> Any:
    batch = trainer.precision_plugin.convert_input(copy.deepcopy(batch))
    batch = module._apply_batch_transfer_handler(batch, device=module.device, dataloader_idx=0)
    with trainer.precision_plugin.forward_context():
        return call_step(module.training_step, batch, index)


@contextmanager
def muted(trainer: Any) -> Iterator[None]:
    """What a copy of the module does through its Trainer inside leads nowhere: logs, checkpoints, a wish to stop."""
    loggers, should_stop, own = trainer.loggers, trainer.should_stop, vars(trainer).get("save_checkpoint")
    dummies = importlib.import_module(f"{namespace_of(trainer).__name__}.loggers.logger")
    trainer.loggers = [dummies.DummyLogger() for _ in loggers]
    vars(trainer)["save_checkpoint"] = lambda *args, **kwargs: None
    try:
        yield
    finally:
        trainer.loggers, trainer.should_stop = loggers, should_stop
        del vars(trainer)["save_checkpoint"]
        if own is not None:
            vars(trainer)["save_checkpoint"] = own


@contextmanager
def _without_trace(trainer: Any, pl_module: Any, *, grad: bool) -> Iterator[None]:
    if takes_iterator(pl_module):
        raise MisconfigurationException(
            f"{type(pl_module).__name__}.training_step takes its batches from dataloader_iter, and none can be looked at "
            "beforehand; pass a learning rate as a number, and recalibrate=0."
        )
    with preserved_rng(), preserved_generators(trainer), torch.set_grad_enabled(grad), muted(trainer):
        yield


def dry_passes(trainer: Any, pl_module: Any, batches: int, *, watch: Callable[[Any], None]) -> Any:
    """Run ``training_step`` of a silent copy on fresh training batches without any optimizer step; returns the copy.

    Args:
        trainer: its training loaders exist.
        pl_module: the module.
        batches: how many.
        watch: called with the copy before the first.
    """
    with _without_trace(trainer, pl_module, grad=not pl_module.automatic_optimization):
        clone = silent_copy(pl_module)
        watch(clone)
        for index, batch in enumerate(itertools.islice(fresh_batches(trainer), batches)):
            _training_step(trainer, clone, batch, index)
    return clone


@contextmanager
def dry_training(trainer: Any, pl_module: Any, optimizer: Optimizer) -> Iterator[DryTraining]:
    """A :class:`DryTraining` whose steps change nothing of the run.

    Weights, buffers, metrics and optimizer state belong to copies; random draws, generators and positions of the
    loaders, loop counters and loggers are as before. Memory for a second module, its gradients and its optimizer state is
    needed meanwhile. Generators hidden in a dataset are not seen.

    Raises:
        MisconfigurationException: a module that cannot be copied, or takes ``dataloader_iter``.
        ValueError: a loader that can be read only once.
    """
    with _without_trace(trainer, pl_module, grad=True):
        try:
            training = DryTraining(trainer, pl_module, optimizer)
        except (TypeError, RuntimeError, NotImplementedError) as error:
            raise MisconfigurationException(
                f"{type(pl_module).__name__} cannot be copied for a trial run ({error}); pass a learning rate as a number."
            ) from error
        yield training
