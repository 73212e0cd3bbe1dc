"""Forwards of users that write to their own weights: what is written to a rounded copy would be lost."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Written:
    """Whether a forward wrote to what stands in the place of a weight, where it would be lost: by value and by place."""

    def __init__(self, names: dict[str, Any], key: str, value: Any) -> None:
        self.names, self.key = names, key
        self.before = [(one.data_ptr(), one.detach().clone()) for one in _tensors(value)]

    def happened(self) -> bool:
        now = _tensors(self.names.get(self.key, []))
        pairs = zip(now, self.before, strict=False)
        return len(now) != len(self.before) or any(
            one.data_ptr() != place or not torch.equal(one, value) for one, (place, value) in pairs
        )


def _tensors(value: Any) -> list[Tensor]:
    return [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, Tensor)]
