"""A pruned module from its checkpoint: without a Trainer, and without pickle."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from lightning_perf.pruning.shapes import reshape, shapes_of, whole_of
from lightning_perf.pruning.trace import first_line

SAVED_BY = "ChannelPruning"


def load_pruned(module: Any, path: str | Path | Mapping[str, Any]) -> Any:
    """Load a checkpoint of a run with :class:`ChannelPruning` into a module as it was before the cut; no pickle, no Trainer.

    As with ``load_from_checkpoint``, ``configure_model`` and ``on_load_checkpoint`` of a LightningModule are called, and its
    ``strict_loading`` decides whether keys may differ.

    Args:
        module: made with the arguments it was trained with; it is given the shapes and the weights of the checkpoint.
        path: a checkpoint of Lightning, with callback state; or what ``torch.load`` made of it, for checkpoints that hold
            objects of other packages, which only you can trust.

    Returns:
        The module.

    Raises:
        ValueError: the checkpoint has no shapes, or those of another module, or not all weights that were cut; it holds more
            than tensors and plain containers.

    Example::

        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "pruned.ckpt"
        >>> shapes = {"tensors": {"weight": [1, 2]}, "sizes": {"": {"out_features": 1}}}
        >>> state = {"callbacks": {"ChannelPruning{}": {"shapes": shapes}}, "state_dict": {"weight": torch.ones(1, 2)}}
        >>> torch.save(state, path)
        >>> load_pruned(torch.nn.Linear(2, 8, bias=False), path)
        Linear(in_features=2, out_features=1, bias=False)
    """
    checkpoint = path if isinstance(path, Mapping) else _loaded(path)
    state = pruned_state(checkpoint)
    if state is None:
        where = "the checkpoint" if isinstance(path, Mapping) else path
        raise ValueError(
            f"{where} holds no shapes: it was saved without ChannelPruning, or with save_weights_only=True. Load it as any "
            "other checkpoint, or save the whole one."
        )
    if hasattr(module, "configure_model"):
        module.configure_model()
    reshape(module, state["shapes"])
    weights = _offered(module, checkpoint)["state_dict"]
    lost = [name for name, _ in module.named_parameters() if name in state["shapes"]["tensors"] and name not in weights]
    if lost:
        raise ValueError(
            f"{lost[0]} was cut, and is not in the checkpoint, so that nobody knows which of its channels are left; save "
            "all weights of the module that is pruned."
        )
    strict = getattr(module, "strict_loading", True)
    keys = module.load_state_dict(weights, strict=strict)
    if not strict and keys.missing_keys:
        warnings.warn(f"not in the checkpoint, and left as they are: {keys.missing_keys}.", stacklevel=2)
    if not strict and keys.unexpected_keys:
        warnings.warn(f"not in the module, and left out: {keys.unexpected_keys}.", stacklevel=2)
    return module


def _offered(module: Any, checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """The checkpoint as the module's own hook leaves it, which may add, drop and rename."""
    if not hasattr(module, "on_load_checkpoint"):
        return checkpoint
    offered = {**checkpoint, "state_dict": copy.copy(checkpoint["state_dict"])}
    module.on_load_checkpoint(offered)
    return offered


def _loaded(path: str | Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise ValueError(
            f"{path} holds objects of other packages, which load_pruned does not unpickle; if you trust it, pass "
            f"torch.load(path, weights_only=False) in place of the path. ({first_line(error)})"
        ) from error


def pruned_state(checkpoint: Mapping[str, Any], state_key: str = "") -> dict[str, Any] | None:
    """What :class:`ChannelPruning`, of whatever arguments, has saved in a checkpoint; None if it has not."""
    states = checkpoint.get("callbacks", {})
    saved = [state for key, state in states.items() if key.startswith(SAVED_BY)]
    return states.get(state_key, saved[0] if len(saved) == 1 else None)


def state_of_weights(
    weights: Mapping[str, Tensor], module: nn.Module, past: Iterable[Mapping[str, Any]]
) -> Mapping[str, Any] | None:
    """The state in which ``module`` has the shapes of ``weights``, which say nothing else; None if it has them now.

    Args:
        weights: of a checkpoint that was saved without callback state.
        module: whole, or cut.
        past: states that it went through; beside them it has been whole.
    """
    whole = whole_of(module)["tensors"]
    origin = {"shapes": {"tensors": {}, "sizes": {}}, "done": 0, "left": 1.0, "members": {}}
    for state in ({"shapes": shapes_of(module)}, origin, *past):
        shapes = {**whole, **state["shapes"]["tensors"]}
        if all(list(weights[name].shape) == list(shape) for name, shape in shapes.items() if name in weights):
            return state if "done" in state else None
    return None
