"""A real training step on a copy of the module, to trace it and to compare losses."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_perf.host import MisconfigurationException, call_step, preserved_rng, silent_copy


def quiet_copy(module: nn.Module) -> nn.Module:
    """A copy that logs nothing, steps nothing, and keeps the losses that it would go backward from by hand."""
    clone = silent_copy(module)
    losses: list[Tensor] = []
    vars(clone)["manual_backward"] = lambda loss, *args, **kwargs: losses.append(loss)
    vars(clone)["_losses_by_hand"] = losses
    return clone


def loss_of(clone: Any, batch: Any) -> Tensor:
    """The loss of a real step on a :func:`quiet_copy`, the same at every call with equal weights.

    Raises:
        MisconfigurationException: the step gives none.
    """
    by_hand = vars(clone)["_losses_by_hand"]
    by_hand.clear()
    with preserved_rng(), clone.trainer.precision_plugin.forward_context():
        torch.manual_seed(0)
        output = call_step(clone.training_step, copy.deepcopy(batch))
    loss = output.get("loss") if isinstance(output, Mapping) else output
    if isinstance(loss, Tensor):
        return loss
    if by_hand:
        return torch.stack([one.reshape(()) for one in by_hand]).sum()
    raise MisconfigurationException(
        f"training_step of {type(clone).__name__} gives no loss to trace: it returns {type(output).__name__} and calls "
        "backward itself; use self.manual_backward(loss), or return the loss."
    )
