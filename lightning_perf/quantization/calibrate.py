"""Calibration: ranges from batches that the module sees in float, without training."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lightning_perf.quantization.broken import give_another_chance, leave_in_float, sort_broken
from lightning_perf.quantization.observers import Gather
from lightning_perf.quantization.prepare import preparation
from lightning_perf.quantization.watch import Watch


@contextmanager
def calibrating(module: nn.Module, gather: Callable[[], Gather | None] = lambda: None) -> Iterator[None]:
    """Inside, a prepared module computes in float and its ranges are gathered anew; afterwards it rounds.

    The range of an activation is that of everything seen, narrowed to where rounding loses least.

    Args:
        module: a prepared module.
        gather: asked afterwards for the function that stacks a tensor of all ranks, so that ranges are those of all of them
            together, and the same on each; None: this process is alone.

    Raises:
        ValueError: inputs or weights that are not finite, or no batch that reached a layer.
    """
    shared = preparation(module)
    assert shared is not None
    ranges = shared.ranges
    give_another_chance(module)
    ranges.reset()
    ranges.samples = {}
    shared.observing = shared.observing_outputs = True
    shared.quantizing = False
    try:
        yield
    finally:
        shared.observing = shared.observing_outputs = False
        shared.quantizing = True
    ranks = gather()
    ranges.take_in(None if ranks is None else lambda ends: ranks(ends).amax(0))
    ranges.clip_to_samples(ranks)
    broken, spared = sort_broken(module, ranges)
    leave_in_float(spared)
    if broken:
        raise ValueError(
            f"infinite or NaN values in calibration: {', '.join(broken)}; use a module and batches that give finite "
            "outputs, or leave these layers out with ignore=[...]."
        )
    if ranges.names and not any(ranges.known):
        raise ValueError(
            "calibration reached no layer; pass a loader whose batches go through the module's validation_step or forward."
        )


@torch.no_grad()
def forward_all(module: nn.Module, loader: Iterable[Any]) -> None:
    """Call a prepared module on every batch, in evaluation mode; the first call is watched.

    A mapping is passed as keywords; of a tuple or list, as many entries as ``forward`` requires arguments (so that labels
    behind the inputs are left out); anything else as the one argument.
    """
    modes = [(child, child.training) for child in module.modules()]
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    module.eval()
    try:
        for index, batch in enumerate(loader):
            args, kwargs = _arguments(module, _moved(batch, device))
            if index:
                module(*args, **kwargs)
                continue
            with Watch(module, "evaluation"):
                module(*args, **kwargs)
    finally:
        for child, mode in modes:
            child.training = mode


def _arguments(module: nn.Module, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(batch, Mapping):
        return (), dict(batch)
    if not isinstance(batch, (tuple, list)) or isinstance(batch, PackedSequence):
        return (batch,), {}
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    given = inspect.signature(module.forward).parameters.values()
    required = [one for one in given if one.kind in kinds and one.default is inspect.Parameter.empty]
    return tuple(batch[: max(1, len(required))]), {}


def _moved(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, PackedSequence):
        return batch.to(device)  # pyright: ignore[reportArgumentType]
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_moved(value, device) for value in batch))
    if isinstance(batch, Mapping):
        return {key: _moved(value, device) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return [_moved(value, device) for value in batch]
    return batch
