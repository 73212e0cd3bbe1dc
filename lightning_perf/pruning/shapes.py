"""Shapes of a module that was cut: noted in place, saved as plain containers, and put back in either direction."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

#: What modules were before anybody cut them, as far as it was cut. Beside them: nothing is added to a user's module.
_whole: WeakKeyDictionary[nn.Module, dict[str, dict[str, Any]]] = WeakKeyDictionary()


def tensors_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers with their names; what has several counts once, under the first."""
    yield from module.named_parameters()
    yield from module.named_buffers()


def whole_of(module: nn.Module) -> dict[str, dict[str, Any]]:
    """Shapes and sizes before the first cut, of what was cut since, as :func:`shapes_of` gives those of now."""
    return _whole.get(module, {"tensors": {}, "sizes": {}})


def remember(module: nn.Module, tensors: Iterable[str], sizes: Mapping[str, Iterable[str]]) -> None:
    """Note what tensors and sizes of layers are before they change, unless that is known from an earlier change."""
    whole = _whole.setdefault(module, {"tensors": {}, "sizes": {}})
    here = dict(tensors_of(module))
    for name in tensors:
        if name in here:
            whole["tensors"].setdefault(name, list(here[name].shape))
    layers = dict(module.named_modules())
    for name, attributes in sizes.items():
        for attribute in attributes:
            if hasattr(layers.get(name), attribute):
                whole["sizes"].setdefault(name, {}).setdefault(attribute, getattr(layers[name], attribute))


def shapes_of(module: nn.Module) -> dict[str, Any]:
    """Shapes of what was ever cut, and the sizes noted by layers: plain containers, from which :func:`reshape` works.

    Example::

        >>> layer = nn.Linear(2, 3, bias=False)
        >>> reshape(layer, {"tensors": {"weight": [1, 2]}, "sizes": {"": {"out_features": 1}}})
        ['weight']
        >>> shapes_of(layer)
        {'tensors': {'weight': [1, 2]}, 'sizes': {'': {'out_features': 1}}}
    """
    whole = whole_of(module)
    return {
        "tensors": {name: list(tensor.shape) for name, tensor in tensors_of(module) if name in whole["tensors"]},
        "sizes": {
            name: {attribute: getattr(layer, attribute) for attribute in whole["sizes"][name]}
            for name, layer in module.named_modules()
            if name in whole["sizes"]
        },
    }


@torch.no_grad()
def reshape(module: nn.Module, shapes: Mapping[str, Any], *, like: nn.Module | None = None) -> list[str]:
    """Give a module the shapes that weights were saved in, before they are loaded; what the shapes leave out is whole.

    Args:
        module: whole, or cut in whatever way.
        shapes: of :func:`shapes_of`.
        like: the module of which this one is a copy, with what is known of its whole shapes.

    Returns:
        The names of tensors that have other shapes now.

    Raises:
        ValueError: a tensor or a layer that the module does not have, or of fewer channels than are asked for.

    Example::

        >>> layer = nn.Linear(2, 3, bias=False)
        >>> reshape(layer, {"tensors": {"weight": [1, 2]}, "sizes": {"": {"out_features": 1}}})
        ['weight']
        >>> layer
        Linear(in_features=2, out_features=1, bias=False)
        >>> reshape(layer, {"tensors": {}, "sizes": {}}), layer
        (['weight'], Linear(in_features=2, out_features=3, bias=False))
    """
    if like is not None:
        _whole[module] = {kind: {**noted} for kind, noted in whole_of(like).items()}
    remember(module, shapes["tensors"], shapes["sizes"])
    tensors, whole = dict(tensors_of(module)), whole_of(module)
    for name, shape in shapes["tensors"].items():
        most = whole["tensors"].get(name)
        if most is None or len(most) != len(shape) or any(a < b for a, b in zip(most, shape, strict=True)):
            here = "missing" if most is None else f"of shape {tuple(most)}"
            raise ValueError(
                f"the pruned shapes are those of another module: {name} is {tuple(shape)} there and {here} here. Make the "
                "module with the arguments it was trained with."
            )
    changed = []
    for name, shape in {**whole["tensors"], **shapes["tensors"]}.items():
        if list(tensors[name].shape) != list(shape):
            put(tensors[name], _resized(tensors[name].data, shape))
            changed.append(name)
    set_sizes(module, whole["sizes"])
    set_sizes(module, shapes["sizes"])
    return changed


def set_sizes(module: nn.Module, sizes: Mapping[str, Mapping[str, Any]]) -> None:
    """Set what layers note about their sizes."""
    for name, attributes in sizes.items():
        layer = module.get_submodule(name)
        for attribute, value in attributes.items():
            setattr(layer, attribute, tuple(value) if isinstance(value, (list, tuple)) else value)


def put(tensor: Tensor, part: Tensor) -> None:
    """Give a parameter or buffer other values, of another shape."""
    tensor.grad = None
    if tensor.requires_grad:
        # While a graph of an earlier step is alive (a logged loss), so is the node that takes the gradient, and it knows
        # the old shape. Torch makes a new one only where the type changes.
        tensor.data = tensor.data.to(torch.float32 if tensor.dtype == torch.float64 else torch.float64)
    tensor.data = part


def as_laid_out(part: Tensor, whole: Tensor) -> Tensor:
    """In the memory format of the whole."""
    last = whole.ndim == 4 and not whole.is_contiguous() and whole.is_contiguous(memory_format=torch.channels_last)
    return part.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _resized(tensor: Tensor, shape: Iterable[int]) -> Tensor:
    """The same values as far as both shapes go, and zeros, until the weights are loaded."""
    made = tensor.new_zeros(tuple(shape))
    both = tuple(slice(min(pair)) for pair in zip(tensor.shape, made.shape, strict=True))
    made[both] = tensor[both]
    return as_laid_out(made, tensor)
