"""What a weight is worth: the lower its score, the earlier it is pruned."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

CRITERIA = ("magnitude", "movement", "random")


def magnitude(weight: Tensor) -> Tensor:
    """The absolute value, in float32 at least.

    Example::

        >>> magnitude(torch.tensor([-2.0, 1.0]))
        tensor([2., 1.])
    """
    return weight.detach().abs().to(torch.promote_types(weight.dtype, torch.float32))


@torch.no_grad()
def add_movement_(score: Tensor, weight: Tensor, gradient: Tensor) -> None:
    """Add to ``score`` how far the gradient moves each weight away from zero: ``-weight * gradient``.

    Source: Sanh et al., "Movement pruning", https://arxiv.org/abs/2005.07683, equation 3. Deviations: summed without the
    learning rate, right after a step, with the stepped weight; and a pruned weight is zero, so that its score stays.

    Example::

        >>> score = torch.zeros(2)
        >>> add_movement_(score, torch.tensor([1.0, 1.0]), torch.tensor([-0.5, 0.5]))
        >>> score
        tensor([ 0.5000, -0.5000])
    """
    score.addcmul_(weight.to(score.dtype), gradient.to(score.dtype), value=-1)


def random_score(name: str, weight: Tensor, seed: int) -> Tensor:
    """A uniform score that depends on the name, the shape and the seed alone, not on the device or the global generator.

    Example::

        >>> weight = torch.zeros(3)
        >>> bool((random_score("a", weight, 1) == random_score("a", weight, 1)).all())
        True
    """
    generator = torch.Generator().manual_seed((seed ^ zlib.crc32(name.encode())) % 2**63)
    return torch.rand(weight.shape, generator=generator).to(weight.device)
