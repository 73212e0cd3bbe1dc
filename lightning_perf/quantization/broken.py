"""Ranges that no number can be: which of them nothing can be done about, and which only keep a layer in float."""

from __future__ import annotations

from torch import nn

from lightning_perf.quantization.kinds import weight_of
from lightning_perf.quantization.layers import Layer, records
from lightning_perf.quantization.observers import Ranges

REASON = "its outputs were infinite or NaN"


def spoken(slot: str) -> str:
    """What a user calls the slot of a range.

    Example::

        >>> spoken("net.0<input"), spoken("net.0>")
        ('the input of net.0', 'the output of net.0')
    """
    name, separator, key = slot.partition("<")
    return f"the {key} of {name}" if separator else f"the output of {slot.removesuffix('>')}"


def sort_broken(module: nn.Module, ranges: Ranges) -> tuple[list[str], list[Layer]]:
    """Activations that were infinite or NaN in every batch: those that are hopeless, and layers that can stay in float.

    Nothing can be done about inputs, nor about weights that are not finite themselves. Where inputs and weights are finite
    and the output alone is not, as masked scores are not, the layer can stay in float.
    """
    bad = {slot for slot, count in enumerate(ranges.broken.tolist()) if count and not ranges.known[slot]}
    hopeless: list[str] = []
    spared: list[Layer] = []
    for name, child, layer in records(module):
        lost = [spoken(ranges.names[slot]) for slot in layer.slots.values() if slot in bad]
        if layer.output in bad:
            weights = [key for key in layer.kind.weights(child) if not weight_of(child, key).isfinite().all()]
            lost += [f"the {key} of {name}" for key in weights]
            if not lost:
                spared.append(layer)
        hopeless += lost
    return hopeless, spared


def leave_in_float(layers: list[Layer]) -> None:
    """Take layers out for what their outputs are."""
    for layer in layers:
        layer.active, layer.reason = False, REASON


def give_another_chance(module: nn.Module) -> None:
    """Take layers in again that were left out for their outputs; new batches decide."""
    for _, _, layer in records(module):
        if layer.reason == REASON:
            layer.active, layer.reason = True, None
