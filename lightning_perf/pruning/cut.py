"""What is left of a module after whole channels are taken out: kept indices, and sizes that layers note."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_perf.pruning.hold import elementwise
from lightning_perf.pruning.shapes import as_laid_out, put, remember, set_sizes, tensors_of

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
        remember(module, self.keep, self.sizes)
        for name, tensor in tensors_of(module):
            if name not in self.keep:
                continue
            for state in states:
                if tensor in state and not elementwise(tensor, state[tensor]):
                    del state[tensor]  # bases and factors of the old shape: the optimizer makes new ones
                for key, value in state.get(tensor, {}).items():
                    if isinstance(value, Tensor) and value.shape == tensor.shape:
                        state[tensor][key] = kept_part(value, self.keep[name])
            put(tensor, kept_part(tensor.data, self.keep[name]))
        set_sizes(module, self.sizes)

    @torch.no_grad()
    def zero(self, module: nn.Module) -> None:
        """Set to zero what :meth:`apply` would take out."""
        for name, tensor in tensors_of(module):
            for dim, kept in self.keep.get(name, {}).items():
                gone = torch.ones(tensor.size(dim), dtype=torch.bool, device=tensor.device)
                gone[kept.to(tensor.device)] = False
                tensor.detach().index_fill_(dim, gone.nonzero().flatten(), 0)


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
    return as_laid_out(part, tensor)
