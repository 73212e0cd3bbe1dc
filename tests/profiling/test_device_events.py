"""The device's timeline on fake events: exclusive spans, events used again, nothing waited for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_perf.profiling.device_events import DeviceTimeline


class FakeDevice:
    """A stream that has got as far as ``reached`` milliseconds; events are recorded at ``cursor``."""

    def __init__(self) -> None:
        self.cursor = 0.0
        self.reached = 0.0
        self.made = 0

    def event(self) -> Any:
        self.made += 1
        return FakeEvent(self)


class FakeEvent:
    def __init__(self, device: FakeDevice) -> None:
        self.device, self.at = device, -1.0

    def record(self) -> None:
        self.at = self.device.cursor

    def query(self) -> bool:
        return self.at <= self.device.reached

    def elapsed_time(self, end: FakeEvent) -> float:
        assert self.query(), "elapsed_time of an event that has not happened raises on a real device"
        assert end.query(), "elapsed_time of an event that has not happened raises on a real device"
        return end.at - self.at


def test_spans_belong_to_the_phase_before() -> None:
    device = FakeDevice()
    timeline = DeviceTimeline(device.event)
    for phase, duration in ((0, 3.0), (1, 5.0), (0, 2.0), (2, 7.0)):
        timeline.mark(phase)
        device.cursor += duration
    timeline.mark(3)
    timeline.poll()
    assert timeline.seconds == {}, "the device has not got anywhere yet"
    device.reached = 9.0
    timeline.poll()
    assert timeline.seconds == {0: pytest.approx(3e-3), 1: pytest.approx(5e-3)}
    device.reached = 17.0
    timeline.poll()
    assert timeline.seconds == {0: pytest.approx(5e-3), 1: pytest.approx(5e-3), 2: pytest.approx(7e-3)}
    assert timeline.outstanding == 1


def test_events_are_used_again() -> None:
    device = FakeDevice()
    timeline = DeviceTimeline(device.event)
    for _ in range(100):
        for phase in (0, 1):
            timeline.mark(phase)
            device.cursor += 1.0
        device.reached = device.cursor
        timeline.poll()
    assert device.made <= 4


def test_the_same_phase_again_costs_no_event() -> None:
    device = FakeDevice()
    timeline = DeviceTimeline(device.event)
    for _ in range(5):
        timeline.mark(4)
    assert device.made == 1
    timeline.reset()
    assert timeline.outstanding == 0


def test_steps_that_do_not_count_are_left_out() -> None:
    """The device is a step behind when the host says that a step does not count."""
    device = FakeDevice()
    timeline = DeviceTimeline(device.event)
    for counts, duration in ((False, 100.0), (True, 1.0), (False, 50.0), (True, 2.0)):
        for phase in (0, 1):
            timeline.mark(phase)
            device.cursor += duration
        timeline.end_step(counts=counts)
        device.reached = device.cursor - duration
    timeline.mark(0)
    device.reached = device.cursor
    timeline.poll()
    assert timeline.seconds == {0: pytest.approx(3e-3), 1: pytest.approx(3e-3)}


@pytest.mark.gpu
def test_on_a_real_device_without_synchronisation() -> None:
    timeline = DeviceTimeline()
    x = torch.randn(2048, 2048, device="cuda")
    for phase in (0, 1, 0):
        timeline.mark(phase)
        for _ in range(10):
            x = x @ x / 2048
    torch.cuda.synchronize()
    timeline.poll()
    assert timeline.seconds[0] > 0
    assert timeline.seconds[1] > 0
