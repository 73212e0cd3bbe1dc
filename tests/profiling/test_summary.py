"""What the report and its advice take from the counted step."""

from __future__ import annotations

import torch
from torch import nn

from lightning_perf.profiling.callback_summary import _convolution_share
from lightning_perf.profiling.flops import FlopCounter
from lightning_perf.profiling.phases import Span
from lightning_perf.profiling.profile_report import phase_section


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


def test_the_table_of_phases_has_the_largest_first() -> None:
    """Four steps; the device's own milliseconds beside them, and a timeline whose nested span lies a row below."""
    spans = [Span("run", "loop", 0.0, 0.004, 0), Span("step", "forward", 0.001, 0.003, 1)]
    section = phase_section({"backward": 0.2, "forward": 0.6}, 4, {"forward": 0.4}, spans)
    assert section.rows == (("forward", "150.000", "75.0%", "100.000"), ("backward", "50.000", "25.0%", "0.000"))
    bars, timeline = section.plots
    assert [(series.name, series.points) for series in bars.series] == [
        ("forward", ((0.0, 150.0),)),
        ("backward", ((0.0, 50.0),)),
    ]
    assert [(series.name, series.row, series.points) for series in timeline.series] == [
        ("loop", 0, ((0.0, 4.0),)),
        ("forward", 1, ((1.0, 3.0),)),
    ]
