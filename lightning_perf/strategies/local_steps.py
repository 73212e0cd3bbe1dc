"""Where in a fit the steps are local, and when the weights of all processes are averaged."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch.optim import Optimizer

from lightning_perf.host import Undo, at_evaluation_door, at_weights_door, shadows_of
from lightning_perf.host.epoch_door import at_epoch_end, batches_that_stepped
from lightning_perf.host.step_closure import HookResult, behind_closure
from lightning_perf.host.timing_door import exchanging
from lightning_perf.strategies.local_sgd import LocalPeriod, adopt_state, average_module
from lightning_perf.strategies.momentum import Momenta


class LocalSteps:
    """The glue of ``perf_local_sgd`` to one Trainer.

    Args:
        trainer: the Trainer; its module is averaged.
        period: which steps are local.
        rate: factor on the learning rates in local steps.
        momentum: whether momentum is averaged with the weights.
    """

    def __init__(self, trainer: Any, period: LocalPeriod, rate: float = 1.0, *, momentum: bool = False) -> None:
        self._trainer, self._period, self._rate, self._momentum = trainer, period, rate, momentum
        self._parted = self._states_parted = False
        self._given: dict[Optimizer, list[Any]] = {}

    def stand(self, undo: Undo) -> None:
        """Average before anybody looks: also before averaged weights (EMA) take the place of those in training.

        Raises:
            DoorClosed: if this release of Lightning evaluates or ends epochs elsewhere.
        """
        undo.push(at_epoch_end(self._trainer, self.average))
        at_evaluation_door(self._trainer, undo, around=self._averaged, at_end=self.average, order=-1)
        undo.push(at_weights_door(self._trainer, lambda state: state, around=self._averaged, order=-1))

    def scale(self, optimizers: Iterable[Optimizer], undo: Undo) -> None:
        """Have local steps of these taken with other learning rates, which nobody else gets to see."""
        if self._rate == 1:
            return
        for optimizer in optimizers:
            undo.push(optimizer.register_step_pre_hook(self._before_step).remove)
            undo.push(optimizer.register_step_post_hook(self._give_back).remove)
            undo.push(self._give_back, optimizer)

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> HookResult:
        """Scale behind the closure: Lightning's runs the user's step, which may read and set the rates."""
        self._give_back(optimizer)  # what a step that failed has left
        again = functools.partial(self._give_back, optimizer)
        return behind_closure(args, kwargs, functools.partial(self._scale, optimizer), before=again)

    def _scale(self, optimizer: Optimizer) -> None:
        if self._period.local:
            self._given[optimizer] = [group["lr"] for group in optimizer.param_groups]
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] * self._rate

    def _give_back(self, optimizer: Optimizer, args: Any = None, kwargs: Any = None) -> None:
        """Also after a step that failed."""
        for group, rate in zip(optimizer.param_groups, self._given.pop(optimizer, ()), strict=False):
            group["lr"] = rate

    def resume(self) -> None:
        """Go on where a checkpoint was written."""
        self._period.resume(batches_that_stepped(self._trainer))

    def start_batch(self) -> None:
        """Average if it is time."""
        if self._period.due(batches_that_stepped(self._trainer)):
            self.average()

    def before_backward(self, wrapper: Any) -> None:
        """Leave the exchange of DDP's ``wrapper`` out of the coming backward, if the step is to be local."""
        if self._period.local:
            self._parted = self._states_parted = True
            wrapper.require_backward_grad_sync = False

    def average(self) -> None:
        """Make weights, what is kept beside them, and momentum equal in all processes, if a local step has parted them."""
        if not self._parted:
            return
        strategy = self._trainer.strategy
        momenta = Momenta(strategy.optimizers if self._momentum else (), strategy.root_device)
        shadows = [shadow for _, shadow in shadows_of(self._trainer)]
        with exchanging(self._trainer):
            momenta.send()
            average_module(self._trainer.lightning_module, strategy.alike, strategy.root_device, shadows)
            momenta.receive()
        self._parted = False

    def adopt_state(self) -> bool:
        """Before a checkpoint: go on with the optimizer state that it holds, as a run resumed from it will.

        Returns:
            Whether that could be: not where a process has state of other parameters.
        """
        if not self._states_parted:
            return True
        strategy = self._trainer.strategy
        with exchanging(self._trainer):
            adopted = adopt_state(strategy.optimizers, strategy.root_device)
        self._states_parted = not adopted
        return adopted

    def _averaged(self) -> AbstractContextManager[None]:
        self.average()
        return nullcontext()
