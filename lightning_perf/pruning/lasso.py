"""Group lasso: a pull of constant length towards zero on each channel, with all weights that would go with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


class GroupLasso:
    """The gradient of ``strength * sum over channels of ||w||``, where ``w`` is what would be taken out with a channel.

    ``||w||`` is the square root of the sum of squares over all indices that go with the channel, so that a weight between
    two channels is in both norms (twice in one, if that is the same channel). The gradient at a weight ``w_i`` is
    ``strength * w_i / ||w||``, summed over its channels; at ``||w|| = 0`` it is zero.

    Args:
        strength: the factor.
        parameters: by name.
        members: by name and dimension, the channel of each index, counted from 1; 0 for none
            (:meth:`~lightning_perf.pruning.channels.Channels.members`). Names without a parameter are passed over.

    Source: Wen et al., https://arxiv.org/abs/1608.03665. Deviations: the groups are those of the cut, over all of their
    layers; norms are not weighted by the number of weights, as those of Yuan and Lin are.

    Example::

        >>> weight = torch.nn.Parameter(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        >>> weight.grad = torch.zeros(2, 2)
        >>> GroupLasso(0.1, {"weight": weight}, {"weight": {0: torch.tensor([1, 2])}}).add_to([weight])
        >>> weight.grad
        tensor([[0.0600, 0.0800],
                [0.0000, 0.0000]])
    """

    def __init__(
        self, strength: float, parameters: Mapping[str, Tensor], members: Mapping[str, Mapping[int, Tensor]]
    ) -> None:
        self.strength = strength
        self._members = [
            (parameters[name], dim, channels.to(parameters[name].device))
            for name, dims in members.items()
            if name in parameters
            for dim, channels in dims.items()
        ]
        self._channels = 1 + max((int(channels.max()) for _, _, channels in self._members), default=0)

    @torch.no_grad()
    def add_to(self, parameters: Iterable[Tensor], scale: float | Tensor = 1.0) -> None:
        """Add it, times ``scale``, to the gradients of those ``parameters`` that have one."""
        stepped = {id(parameter) for parameter in parameters if parameter.grad is not None}
        if not any(id(parameter) in stepped for parameter, _, _ in self._members):
            return
        squares = torch.zeros(self._channels, device=self._members[0][0].device)
        for parameter, dim, channels in self._members:
            of_index = parameter.float().square().movedim(dim, 0).reshape(len(channels), -1).sum(1)
            squares.index_add_(0, channels.to(squares.device), of_index.to(squares.device))
        pull = torch.where(squares > 0, self.strength * squares.rsqrt(), 0.0)
        pull[0] = 0.0
        for parameter, dim, channels in self._members:
            gradient = parameter.grad
            if id(parameter) in stepped and gradient is not None:
                shape = [-1 if other == dim else 1 for other in range(parameter.ndim)]
                along = pull.to(parameter.device)[channels].view(shape)
                gradient.add_((parameter * along * scale).to(gradient.dtype))
