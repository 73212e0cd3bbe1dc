"""A real training step on a copy of the module, to trace it and to compare losses."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_perf.host import MisconfigurationException, call_step, few_samples, preserved_rng, silent_copy
from lightning_perf.pruning.trace import leaves_of

_FEW = 2


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
        loss = torch.stack([one.reshape(()) for one in by_hand]).sum()
        by_hand.clear()  # and with them, before long, what they were computed from
        return loss
    raise MisconfigurationException(
        f"training_step of {type(clone).__name__} gives no loss to trace: it returns {type(output).__name__} and calls "
        "backward itself; use self.manual_backward(loss), or return the loss."
    )


def value_of(clone: Any, batch: Any) -> Tensor:
    """The loss of :func:`loss_of` without its graph, unless the step takes gradients of its own."""
    try:
        with torch.no_grad():
            return loss_of(clone, batch)
    except Exception:  # whatever the module raises, for this reason or another
        return loss_of(clone, batch).detach()


def few_of(batch: Any) -> Any:
    """A few samples of a batch, if it is sure to part into samples."""
    few = few_samples(batch, _FEW)
    return batch if few is None else few


def small_part(module: Any, batch: Any) -> Any:
    """A few samples of a batch that lead the step to the same parameters as all of them; the batch itself if none do.

    Tracing keeps the activations of a step, and every trial of a cut takes two.
    """
    few = few_of(batch)
    if few is batch:
        return batch
    clone = quiet_copy(module).eval()
    reached = leaves_of(loss_of(clone, batch))
    try:
        loss = loss_of(clone, few)
    except Exception:  # of a module that wants its batch as it is
        return batch
    return few if bool(loss.isfinite().all()) and leaves_of(loss) == reached else batch
