"""What is left of a module after whole channels are taken out: kept indices, and sizes that layers note."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_perf.pruning.hold import elementwise

Size = int | tuple[int, ...]


@dataclass(frozen=True)
class Cut:
    """Kept indices by name of a parameter or buffer and dimension, and what layers note about their sizes.

    Parameters keep their identity, so optimizers, schedulers and hooks go on with them; their states are cut alike.

    Example::

        >>> layer = nn.Linear(2, 3)
        >>> cut = Cut({"weight": {0: torch.tensor([0, 2])}, "bias": {0: torch.tensor([0, 2])}}, {"": {"out_features": 2}})
        >>> cut.apply(layer)
        >>> layer, layer(torch.ones(1, 2)).shape
        (Linear(in_features=2, out_features=2, bias=True), torch.Size([1, 2]))
    """

    keep: Mapping[str, Mapping[int, Tensor]] = field(default_factory=dict)
    sizes: Mapping[str, Mapping[str, Size]] = field(default_factory=dict)

    @torch.no_grad()
    def apply(self, module: nn.Module, optimizers: Iterable[Optimizer] = ()) -> None:
        """Cut the tensors of ``module`` in place, and what optimizers keep in their shape."""
        states = [optimizer.state for optimizer in optimizers]
        for name, tensor in tensors_of(module):
            if name not in self.keep:
                continue
            for state in states:
                if tensor in state and not elementwise(tensor, state[tensor]):
                    del state[tensor]  # bases and factors of the old shape: the optimizer makes new ones
                for key, value in state.get(tensor, {}).items():
                    if isinstance(value, Tensor) and value.shape == tensor.shape:
                        state[tensor][key] = kept_part(value, self.keep[name])
            _put(tensor, kept_part(tensor.data, self.keep[name]))
        set_sizes(module, self.sizes)

    @torch.no_grad()
    def zero(self, module: nn.Module) -> None:
        """Set to zero what :meth:`apply` would take out."""
        for name, tensor in tensors_of(module):
            for dim, kept in self.keep.get(name, {}).items():
                gone = torch.ones(tensor.size(dim), dtype=torch.bool, device=tensor.device)
                gone[kept.to(tensor.device)] = False
                tensor.detach().index_fill_(dim, gone.nonzero().flatten(), 0)


def tensors_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers with their names; what has several counts once, under the first."""
    yield from module.named_parameters()
    yield from module.named_buffers()


def shapes_of(module: nn.Module, cut: Cut) -> dict[str, Any]:
    """Shapes of what was cut, and the sizes noted by layers: plain containers, from which :func:`reshape` works.

    Example::

        >>> cut = Cut({"weight": {0: torch.tensor([0])}}, {"": {"out_features": 1}})
        >>> layer = nn.Linear(2, 3, bias=False)
        >>> cut.apply(layer)
        >>> shapes_of(layer, cut)
        {'tensors': {'weight': [1, 2]}, 'sizes': {'': {'out_features': 1}}}
    """
    shapes = {name: list(tensor.shape) for name, tensor in tensors_of(module) if name in cut.keep}
    return {"tensors": shapes, "sizes": {name: dict(sizes) for name, sizes in cut.sizes.items()}}


def reshape(module: nn.Module, shapes: Mapping[str, Any]) -> None:
    """Give a module the shapes of a cut one, before its weights are loaded.

    Raises:
        ValueError: a tensor or a layer that the module does not have, or of fewer channels than are asked for.

    Example::

        >>> layer = nn.Linear(2, 3, bias=False)
        >>> reshape(layer, {"tensors": {"weight": [1, 2]}, "sizes": {"": {"out_features": 1}}})
        >>> layer
        Linear(in_features=2, out_features=1, bias=False)
    """
    tensors = dict(tensors_of(module))
    for name, shape in shapes["tensors"].items():
        tensor = tensors.get(name)
        if tensor is None or tensor.ndim != len(shape) or any(a < b for a, b in zip(tensor.shape, shape, strict=True)):
            here = "missing" if tensor is None else f"of shape {tuple(tensor.shape)}"
            raise ValueError(
                f"the pruned shapes are those of another module: {name} is {tuple(shape)} there and {here} here. Make the "
                "module with the arguments it was trained with."
            )
    for name, shape in shapes["tensors"].items():
        tensor = tensors[name]
        _put(tensor, tensor.data[tuple(slice(size) for size in shape)].clone())
    set_sizes(module, shapes["sizes"])


def set_sizes(module: nn.Module, sizes: Mapping[str, Mapping[str, Any]]) -> None:
    """Set what layers note about their sizes."""
    for name, attributes in sizes.items():
        layer = module.get_submodule(name)
        for attribute, value in attributes.items():
            setattr(layer, attribute, tuple(value) if isinstance(value, (list, tuple)) else value)


def kept_part(tensor: Tensor, keep: Mapping[int, Tensor]) -> Tensor:
    """The kept indices of some dimensions, in the layout of the whole.

    Example::

        >>> kept_part(torch.tensor([[1, 2], [3, 4]]), {1: torch.tensor([1])})
        tensor([[2],
                [4]])
    """
    part = tensor
    for dim, indices in keep.items():
        part = part.index_select(dim, indices.to(tensor.device))
    last = tensor.ndim == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)
    return part.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _put(tensor: Tensor, part: Tensor) -> None:
    """Give a parameter or buffer other values, of another shape."""
    tensor.grad = None
    if tensor.requires_grad:
        # While a graph of an earlier step is alive (a logged loss), so is the node that takes the gradient, and it knows
        # the old shape. Torch makes a new one only where the type changes.
        tensor.data = tensor.data.to(torch.float32 if tensor.dtype == torch.float64 else torch.float64)
    tensor.data = part
