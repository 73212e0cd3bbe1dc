"""What the report and its advice take from the counted step."""

from __future__ import annotations

import torch
from torch import nn

from lightning_perf.profiling.callback_summary import _convolution_share
from lightning_perf.profiling.flops import FlopCounter


def test_convolutions_that_channels_last_would_change() -> None:
    """2-D and 3-D in contiguous layout count; 1-D ones have no such layout, and one that has it already is done."""
    x = torch.zeros(2, 4, 8, 8)

    def share(module: nn.Module, *inputs: torch.Tensor) -> float | None:
        with FlopCounter(module) as counter:
            module(*inputs).sum().backward()
        return _convolution_share(counter.count, module)

    assert share(nn.Sequential(nn.Conv2d(4, 4, 3)), x) == 1.0
    assert share(nn.Sequential(nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)), x) == 0.0  # type: ignore[call-overload]
    assert share(nn.Sequential(nn.Conv1d(4, 4, 3)), x[:, :, 0]) == 0.0
    assert share(nn.Sequential(nn.Linear(8, 8)), x) == 0.0
    mixed = share(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Linear(8, 8)), x)
    assert mixed is not None
    assert 0 < mixed < 1
    assert _convolution_share(None, nn.Linear(1, 1)) is None
