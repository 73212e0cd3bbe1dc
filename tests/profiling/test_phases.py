"""Every second goes to one phase: actions by name, nesting, validation, exceptions, timelines, on a fake clock."""

from __future__ import annotations

import pytest

from lightning_perf.profiling import phases
from lightning_perf.profiling.phases import PhaseClock, by_phase, phase_of


class FakeClock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize(
    ("action", "phase"),
    [
        ("[_TrainingEpochLoop].train_dataloader_next", phases.DATA_WAIT),
        ("[Strategy]DDPStrategy.batch_to_device", phases.TRANSFER),
        ("[LightningModule]Net.transfer_batch_to_device", phases.TRANSFER),
        ("[LightningDataModule]Data.on_after_batch_transfer", phases.TRANSFER),
        ("[Strategy]SingleDeviceStrategy.training_step", phases.FORWARD),
        ("[Strategy]SingleDeviceStrategy.backward", phases.BACKWARD),
        ("[LightningModule]Net.on_after_backward", phases.BACKWARD),
        ("[LightningModule]Net.optimizer_step", phases.OPTIMIZER),
        ("[LightningModule]Net.configure_gradient_clipping", phases.OPTIMIZER),
        ("optimizer_step", phases.OPTIMIZER),
        ("[LightningModule]Net.on_train_batch_end", phases.HOOKS),
        ("[Strategy]SingleDeviceStrategy.on_train_batch_start", phases.LOOP),
        ("[Callback]TQDMProgressBar.on_train_batch_end", "callback: TQDMProgressBar"),
        ("[Callback]ModelCheckpoint{'monitor': 'a.b', 'mode': 'min'}.on_train_epoch_end", "callback: ModelCheckpoint"),
        ("save_checkpoint", phases.CHECKPOINT),
        ("run_training_batch", phases.LOOP),
        ("run_training_epoch", phases.REST),
        (phases.LOGGERS, phases.LOGGERS),
    ],
)
def test_phase_of(action: str, phase: str) -> None:
    assert phase_of(action) == phase


def test_nested_actions_are_exclusive() -> None:
    """The optimizer's step holds forward and backward, as Lightning's closure nests them."""
    time = FakeClock()
    clock = PhaseClock(clock=time)
    clock.reset()
    time.pass_(1)
    clock.start("run_training_batch")
    time.pass_(2)
    clock.start("[LightningModule]M.optimizer_step")
    time.pass_(4)
    clock.start("[Strategy]S.training_step")
    time.pass_(8)
    clock.start(phases.LOGGING)
    time.pass_(16)
    clock.stop(phases.LOGGING)
    time.pass_(32)
    clock.stop("[Strategy]S.training_step")
    clock.start("[Strategy]S.backward")
    time.pass_(64)
    clock.stop("[Strategy]S.backward")
    time.pass_(128)
    clock.stop("[LightningModule]M.optimizer_step")
    time.pass_(256)
    clock.stop("run_training_batch")
    seconds = {name: value for name, value in clock.seconds().items() if value}
    assert seconds == {
        "setup": 1,
        phases.LOOP: 2 + 256,
        phases.OPTIMIZER: 4 + 128,
        phases.FORWARD: 8 + 32,
        phases.LOGGING: 16,
        phases.BACKWARD: 64,
    }
    assert sum(seconds.values()) == time.now


def test_validation_keeps_its_actions_to_itself() -> None:
    time = FakeClock()
    clock = PhaseClock(clock=time)
    clock.reset()
    clock.leave_steps("validation", evaluate=True)
    time.pass_(1)
    clock.start("[Strategy]S.batch_to_device")
    time.pass_(2)
    clock.stop("[Strategy]S.batch_to_device")
    clock.leave_steps("save_checkpoint")
    time.pass_(8)
    clock.return_to_steps("save_checkpoint")
    time.pass_(16)
    clock.return_to_steps("validation")
    assert clock.away == 1 + 2 + 8 + 16
    clock.start("[Strategy]S.batch_to_device")
    time.pass_(4)
    clock.stop("[Strategy]S.batch_to_device")
    seconds = clock.seconds()
    assert seconds["validation"] == 1 + 16
    assert seconds["validation/host to device"] == 2
    assert seconds["host to device"] == 4
    assert by_phase(seconds) == {"validation": 19, "checkpoint": 8, "host to device": 4}


def test_unwind_closes_what_an_exception_left_open() -> None:
    time = FakeClock()
    clock = PhaseClock(clock=time)
    clock.start("run_training_epoch")
    depth = clock.depth
    clock.start("run_training_batch")
    clock.start("optimizer_step")
    clock.unwind(depth)
    time.pass_(3)
    assert clock.depth == 1
    assert clock.seconds()[phases.REST] == 3


def test_what_happens_at_the_request_for_a_batch_is_charged_once() -> None:
    """A logger that is told something at the request: neither a wait for data nor negative seconds of what was open."""
    time = FakeClock()
    clock = PhaseClock(clock=time)
    clock.reset(ground=phases.REST)
    own = clock.span("callback: Own")

    def tell() -> None:
        with own:
            time.pass_(4)

    clock.at_next_batch = tell
    clock.start("run_training_epoch")
    time.pass_(1)
    clock.start("[_TrainingEpochLoop].train_dataloader_next")
    time.pass_(2)
    clock.stop("[_TrainingEpochLoop].train_dataloader_next")
    assert by_phase(clock.seconds()) == {phases.REST: 1, "callback: Own": 4, phases.DATA_WAIT: 2}


def test_the_ground_is_what_no_action_covers() -> None:
    time = FakeClock()
    clock = PhaseClock(clock=time)
    clock.start("run_training_epoch")
    clock.start("optimizer_step")
    clock.reset(ground=phases.LOOP)
    time.pass_(1)
    clock.stop("optimizer_step")
    time.pass_(2)
    clock.stop("run_training_epoch")
    time.pass_(4)
    assert by_phase(clock.seconds()) == {phases.OPTIMIZER: 1, phases.REST: 2, phases.LOOP: 4}


def test_a_timeline_holds_whole_actions_only() -> None:
    """An action that began before the record, or has not ended, is not in it."""
    time = FakeClock()
    clock = PhaseClock(clock=time)
    clock.start("run_training_epoch")
    clock.record()
    time.pass_(1)
    clock.stop("run_training_epoch")
    clock.start("run_training_batch")
    time.pass_(2)
    clock.start("optimizer_step")
    time.pass_(4)
    clock.stop("optimizer_step")
    clock.stop("run_training_batch")
    clock.start("save_checkpoint")
    spans = clock.recorded()
    assert [(span.phase, span.start, span.stop, span.depth) for span in spans] == [
        (phases.LOOP, 0.0, 6.0, 0),
        (phases.OPTIMIZER, 2.0, 6.0, 1),
    ]
    assert clock.recorded() == []


def test_mark_hears_every_change() -> None:
    heard: list[int] = []
    clock = PhaseClock(clock=FakeClock(), mark=heard.append)
    clock.start("run_training_batch")
    clock.start("optimizer_step")
    clock.stop("optimizer_step")
    names = [clock.names[index] for index in heard]
    assert names == [phases.LOOP, phases.OPTIMIZER, phases.LOOP]
