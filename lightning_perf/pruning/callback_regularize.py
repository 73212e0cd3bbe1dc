"""The part of ChannelPruning that pulls channels towards zero before they are cut."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lightning_perf.host import MisconfigurationException, follow_optimizers
from lightning_perf.host.step_closure import HookResult, behind_closure
from lightning_perf.pruning.channels import Channels
from lightning_perf.pruning.lasso import GroupLasso


def check_strength(regularize: float, at: float, steps: int) -> None:
    """Whether it is a strength, and there is a time for it.

    Raises:
        ValueError: it is no finite number of at least 0, or nothing comes before the only cut.
    """
    number = isinstance(regularize, (int, float)) and not isinstance(regularize, bool)
    if not number or not 0 <= regularize < math.inf:
        raise ValueError(f"regularize={regularize!r} must be a number of at least 0, such as 1e-4; 0 is without.")
    if regularize and at == 0 and steps == 1:
        raise ValueError(
            f"regularize={regularize!r} means nothing with at={at!r}, which cuts before the first step; cut later, or leave "
            "regularize out."
        )


class Pull:
    """A group lasso on the channels that the next cut may take, added to gradients right before any optimizer steps.

    Args:
        strength: of the group lasso.
    """

    def __init__(self, strength: float) -> None:
        self.strength = strength
        self.members: dict[str, dict[int, Tensor]] = {}  # callback state: a resumed run pulls what it pulled before
        self._lasso: GroupLasso | None = None

    def begin(self, trainer: Any, pl_module: Any, channels: Callable[[], Channels]) -> None:
        """Find the channels, the same on all ranks, unless they are known.

        Raises:
            ValueError: no channel can be cut.
            MisconfigurationException: groups that can be cut one by one but do not part into channels together.
        """
        if self._lasso is not None:
            return
        if not self.members:
            found = channels()
            found.require_some()
            try:
                self.members = found.members()
            except ValueError as error:
                raise MisconfigurationException(
                    f"regularize={self.strength} cannot tell the channels of {type(pl_module).__name__} apart ({error}); "
                    "leave some groups out with ignore=, or regularize."
                ) from error
            if trainer.world_size > 1:  # ranks see other batches
                self.members = trainer.strategy.broadcast(self.members)
        self._lasso = GroupLasso(self.strength, dict(pl_module.named_parameters()), self.members)

    def end(self) -> None:
        """Stop until the next :meth:`begin`, which finds the channels anew."""
        self.members, self._lasso = {}, None

    def stand_at(self, trainer: Any) -> Callable[[], None]:
        """Follow every step of the optimizers of a fit, whoever calls it; returns the undo."""

        def follow(optimizer: Optimizer) -> Callable[[], None]:
            return optimizer.register_step_pre_hook(self._before_step).remove

        leave = follow_optimizers(trainer, follow)

        def undo() -> None:
            self._lasso = None
            leave()

        return undo

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> HookResult:
        """Add the pull once gradients are there."""
        return None if self._lasso is None else behind_closure(args, kwargs, functools.partial(self._add, optimizer))

    def _add(self, optimizer: Optimizer) -> None:
        if self._lasso is not None:
            # A fused step under a gradient scaler divides by the scale itself.
            scale = getattr(optimizer, "grad_scale", None)
            parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
            self._lasso.add_to(parameters, 1.0 if scale is None else scale)
