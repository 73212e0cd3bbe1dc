"""A sleep of 20 ms planted in one place moves the phase of that place, and no other.

Attribution is what is tested, not speed: every fit holds slow and ordinary steps in turns, and each phase's seconds in
the slow steps are compared with those in the ordinary steps of the same fit.
"""

from __future__ import annotations

import time
from statistics import quantiles
from types import ModuleType
from typing import Any

import lightning.pytorch
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from lightning_perf import ThroughputProfiler
from lightning_perf.profiling import phases
from lightning_perf.profiling.callback_observe import Observations

DELAY = 0.020
STEPS = 44
FIRST = 2  # warm-up


class Sleeper:
    """Sleeps at every second visit of its place."""

    def __init__(self, place: str) -> None:
        self.place, self.visits = place, 0

    def at(self, place: str) -> None:
        if place == self.place:
            self.visits += 1
            if self.visits % 2:
                time.sleep(DELAY)


class Items(Dataset):  # type: ignore[type-arg]
    def __init__(self, sleeper: Sleeper) -> None:
        self.sleeper = sleeper

    def __len__(self) -> int:
        return STEPS

    def __getitem__(self, index: int) -> torch.Tensor:
        self.sleeper.at("__getitem__")
        return torch.zeros(4)


class Recorder(ThroughputProfiler):
    """Keeps the seconds of every phase, step by step."""

    def __init__(self) -> None:
        super().__init__(flops=False, roofline=False, every_n_steps=10_000)
        self.rows: list[dict[str, float]] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_start(trainer, pl_module)
        observed = self._observed
        assert isinstance(observed, Observations)
        count, last = observed.next_batch, observed.clock.seconds()

        def next_batch() -> None:
            nonlocal last
            now = observed.clock.seconds()
            if observed._trained:
                self.rows.append({name: value - last.get(name, 0.0) for name, value in now.items()})
            count()
            last = observed.clock.seconds()

        observed.clock.at_next_batch = next_batch


def module_of(ns: ModuleType, sleeper: Sleeper, manual: bool = False) -> Any:
    class Module(ns.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 2)
            self.automatic_optimization = not manual

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            sleeper.at("training_step")
            loss = self.layer(batch).sum()
            self.log("loss", loss)
            if manual:
                optimizer = self.optimizers()
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
            return loss

        def log(self, *args: Any, **kwargs: Any) -> None:
            sleeper.at("self.log")
            super().log(*args, **kwargs)

        def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
            sleeper.at("transfer_batch_to_device")
            return super().transfer_batch_to_device(batch, device, dataloader_idx)

        def on_after_backward(self) -> None:
            sleeper.at("on_after_backward")

        def on_train_batch_end(self, *args: Any) -> None:
            sleeper.at("module hook")

        def configure_optimizers(self) -> Any:
            class SlowSGD(torch.optim.SGD):
                def step(self, closure: Any = None) -> Any:  # type: ignore[override]
                    result = super().step(closure)
                    sleeper.at("optimizer_step")
                    return result

            return SlowSGD(self.parameters(), lr=1e-3)

    return Module()


def fit(ns: ModuleType, place: str, tmp_path: Any, *, workers: int = 0, manual: bool = False) -> Recorder:
    sleeper = Sleeper(place)

    class SlowCallback(ns.Callback):  # type: ignore[misc, name-defined]
        def on_train_batch_start(self, *args: Any) -> None:
            sleeper.at("callback")

    class SlowLogger(ns.loggers.CSVLogger):  # type: ignore[misc, name-defined]
        def log_metrics(self, metrics: Any, step: Any = None) -> None:
            sleeper.at("logger")
            super().log_metrics(metrics, step)

    recorder = Recorder()
    trainer = ns.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        logger=SlowLogger(tmp_path),
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[SlowCallback(), recorder],
    )
    trainer.fit(module_of(ns, sleeper, manual), DataLoader(Items(sleeper), num_workers=workers))
    return recorder


def slow_and_ordinary(recorder: Recorder) -> dict[str, tuple[float, float]]:
    """For each phase the first quintile of its seconds in the steps of the sleep and in those without.

    A busy machine makes some steps longer; the first quintile of many steps does not see those.
    """
    rows = recorder.rows[FIRST:]
    slow = [row for row in rows if sum(row.values()) >= DELAY]
    fast = [row for row in rows if sum(row.values()) < DELAY]
    assert len(slow) >= 5
    assert len(fast) >= 5
    names = {name for row in rows for name in row}
    return {
        name: tuple(quantiles([row.get(name, 0.0) for row in rows], n=5)[0] for rows in (slow, fast)) for name in names
    }


PLACES = {
    "__getitem__": phases.DATA_WAIT,
    "training_step": phases.FORWARD,
    "on_after_backward": phases.BACKWARD,
    "optimizer_step": phases.OPTIMIZER,
    "self.log": phases.LOGGING,
    "logger": phases.LOGGERS,
    "callback": "callback: SlowCallback",
    "transfer_batch_to_device": phases.TRANSFER,
    "module hook": phases.HOOKS,
}


@pytest.mark.parametrize("place", PLACES)
def test_only_that_phase_moves(place: str, ns: ModuleType, tmp_path: Any) -> None:
    times = slow_and_ordinary(fit(ns, place, tmp_path))
    moved = {name: slow - fast for name, (slow, fast) in times.items()}
    phase = PLACES[place]
    assert moved.pop(phase) == pytest.approx(DELAY, abs=3e-3)
    assert max(abs(value) for value in moved.values()) < 3e-3


@pytest.mark.parametrize("place", ["training_step", "on_after_backward", "optimizer_step"])
def test_manual_optimization(place: str, tmp_path: Any) -> None:
    """Backward and optimizer run inside training_step there, and are told apart all the same."""
    times = slow_and_ordinary(fit(lightning.pytorch, place, tmp_path, manual=True))
    moved = {name: slow - fast for name, (slow, fast) in times.items()}
    assert moved.pop(PLACES[place]) == pytest.approx(DELAY, abs=3e-3)
    assert max(abs(value) for value in moved.values()) < 3e-3


def test_workers_hide_a_slow_dataset(tmp_path: Any) -> None:
    """Two workers fetch 20 ms items while a step of 40 ms runs: the wait for data is next to nothing."""
    sleeper = Sleeper("nowhere")
    module = module_of(lightning.pytorch, sleeper)
    step = type(module).training_step

    def slow_step(self: Any, batch: Any, batch_idx: int) -> Any:
        time.sleep(2 * DELAY)
        return step(self, batch, batch_idx)

    type(module).training_step = slow_step
    recorder = Recorder()
    trainer = lightning.pytorch.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[recorder],
    )
    items = Items(Sleeper("__getitem__"))
    trainer.fit(module, DataLoader(items, num_workers=2))
    waits = [row.get(phases.DATA_WAIT, 0.0) for row in recorder.rows[4:]]
    assert quantiles(waits, n=5)[0] < DELAY / 4, "a sample takes 20 ms, and nobody waits for it"
    assert recorder.report.phases[phases.WORKER_START] > 0
