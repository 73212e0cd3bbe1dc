"""What the ways into a module give with and without channels that a cut takes out, and whether that is the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from lightning_perf.pruning.trace import first_line

Given = Mapping[
    str, Sequence[Tensor] | Exception
]  # by ways into a module: tensors that matter outside, or what is raised

_TOLERANCE = 1e-3  # of single numbers, which no mean has smoothed


def difference(name: str, zeroed: Given, smaller: Given) -> str | None:
    """How one way into the smaller module differs from that into one with zeros; None if it does not, or breaks in both.

    Example::

        >>> import torch
        >>> difference("predict_step", {"predict_step": [torch.ones(2, 3)]}, {"predict_step": [torch.ones(2, 1)]})
        'predict_step gives tensors of other shapes without its channels'
    """
    there, here = zeroed.get(name, []), smaller.get(name, [])
    if isinstance(there, Exception):
        return None
    if isinstance(here, Exception):
        return f"without its channels {name} raises {first_line(here)}"
    if [one.shape for one in there] != [one.shape for one in here]:
        return f"{name} gives tensors of other shapes without its channels"
    for one, other in zip(there, here, strict=True):
        if one.is_floating_point() and one.numel():
            scale = one.abs().max().clamp_min(1.0)
            if bool((one - other).abs().max() > _TOLERANCE * scale):
                return f"{name} gives other numbers without its channels than with zeros in their place"
    return None
