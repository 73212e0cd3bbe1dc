"""ThroughputProfiler where a fit is not plain: ragged epochs, tuners, skipped batches, exceptions, loggers that fail."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.data import DataLoader, SequentialSampler

import lightning_perf as lp
from lightning_perf.profiling import callback, phases
from lightning_perf.profiling.callback_observe import Observations
from tests.contract.modules import images, make

Plain: Any = type(make("plain", pl))


class Keeper(lp.ThroughputProfiler):
    """Keeps what it has observed."""

    observed: Observations

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**{"roofline": False, "flops": False, **arguments})

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_start(trainer, pl_module)
        assert self._observed is not None
        self.observed = self._observed


def fit(
    quiet: dict[str, Any], module: Any, *data: Any, others: Any = (), keeper: Any = None, **arguments: Any
) -> Keeper:
    keeper = keeper or Keeper()
    trainer = pl.Trainer(**{**quiet, **arguments}, callbacks=[*others, keeper])
    trainer.fit(module, *data)
    return keeper


def test_a_raw_optimizer_that_is_made_anew(quiet: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each epoch steps another one, and each of its steps is heard."""
    base = type(make("raw_step", pl))
    heard: list[str] = []

    class Renewed(base):  # type: ignore[misc, valid-type]
        def on_train_epoch_start(self) -> None:
            self.raw = torch.optim.SGD(self.parameters(), lr=0.01)
            self.trainer.strategy.optimizers = [self.raw]

    class Spy:
        def start(self, action: str) -> None:
            heard.append(action)

        def stop(self, action: str) -> None:
            heard.append(f"end of {action}")

    listen = callback.listen_to_raw_steps
    monkeypatch.setattr(callback, "listen_to_raw_steps", lambda trainer, clock, undo: listen(trainer, Spy(), undo))
    fit(quiet, Renewed(), images(), max_epochs=3)
    assert heard == [phases.OPTIMIZER, f"end of {phases.OPTIMIZER}"] * 18


def test_the_smaller_last_batch_of_every_epoch(ns: ModuleType, quiet: dict[str, Any]) -> None:
    """Six epochs of 19 batches of 4 and one of 3; the steps 0, 1 and 3 are left out."""
    keeper = Keeper()
    ns.Trainer(**quiet, max_epochs=6, callbacks=[keeper]).fit(make("plain", ns), images(79))
    assert keeper.observed.steps.samples == 6 * 79 - 3 * 4


@pytest.mark.parametrize("every", [5, 50])
def test_a_change_of_size_is_seen_within_sixteen_batches(every: int, quiet: dict[str, Any]) -> None:
    """40 batches of 4, then 60 of 2, and the profiler takes stock more or less often; 0, 1 and 3 are left out."""
    sizes = [4] * 40 + [2] * 60
    loader = DataLoader(images(8).dataset, batch_sampler=[list(range(size)) for size in sizes])  # type: ignore[arg-type]
    keeper = fit(quiet, make("plain", pl), loader, keeper=Keeper(every_n_steps=every), max_epochs=1)
    samples = keeper.observed.steps.samples
    assert samples is not None
    assert 0 <= samples - (sum(sizes) - 3 * 4) <= 15 * 2


def test_batches_that_are_an_epoch_each(quiet: dict[str, Any]) -> None:
    keeper = fit(quiet, make("plain", pl), images(24), max_epochs=24, limit_train_batches=1)
    assert keeper.report.steps == 24 - 3
    assert keeper.observed.steps.samples == 4 * 21


@pytest.mark.parametrize("finder", ["learning rate", "batch size"])
def test_a_tuner_before_the_training_is_not_counted(finder: str, quiet: dict[str, Any]) -> None:
    class Tuned(Plain):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.lr, self.batch_size = 0.1, 4

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=self.lr)

        def train_dataloader(self) -> Any:
            return images(80, self.batch_size)

        def val_dataloader(self) -> Any:
            return images(8, self.batch_size)

    tuners = {
        "learning rate": pl.callbacks.LearningRateFinder(num_training_steps=15),
        "batch size": pl.callbacks.BatchSizeFinder(max_trials=1, init_val=4),
    }
    module = Tuned()
    keeper = fit(quiet, module, others=[tuners[finder]], max_epochs=2)
    assert keeper.report.steps == 2 * 80 // module.batch_size - 3
    assert keeper.observed.steps.samples == module.batch_size * keeper.report.steps


def test_own_scalars_are_not_a_wait_for_data(quiet: dict[str, Any], tmp_path: Any) -> None:
    """A logger that takes 20 ms for what the profiler tells it: charged to the profiler, in the steps' time too."""

    class Slow(pl.loggers.CSVLogger):
        def log_metrics(self, metrics: Any, step: Any = None) -> None:
            assert metrics, "there is something to log, or no call"
            if "profile/step_ms" in metrics:
                time.sleep(0.02)

    keeper = fit(
        quiet, make("plain", pl), images(80), keeper=Keeper(every_n_steps=1), max_epochs=1, logger=Slow(tmp_path)
    )
    per_step = keeper.report.per_step()
    assert per_step["callback: ThroughputProfiler"] == pytest.approx(0.02, rel=0.3)
    assert per_step[phases.DATA_WAIT] < 0.01
    assert min(per_step.values()) >= 0


def test_every_second_between_epochs_is_somewhere(quiet: dict[str, Any]) -> None:
    """A sampler that takes 50 ms for a new epoch, and a loader that is made anew in 50 ms."""

    class Sampler(SequentialSampler):
        def set_epoch(self, epoch: int) -> None:
            time.sleep(0.05)

    class Reloading(Plain):  # type: ignore[misc]
        def train_dataloader(self) -> Any:
            time.sleep(0.05)
            dataset = images(40).dataset
            return DataLoader(dataset, batch_size=4, sampler=Sampler(dataset))  # type: ignore[arg-type]

    found = fit(quiet, Reloading(), max_epochs=4, reload_dataloaders_every_n_epochs=1).report.phases
    assert found[phases.LOADERS] >= 3 * 0.05
    assert found[phases.REST] >= 3 * 0.05
    assert phases.SETUP not in found


@pytest.mark.parametrize("skipped", [2, 3, 5, 7])
def test_a_skipped_epoch(skipped: int, quiet: dict[str, Any], tmp_path: Any) -> None:
    """``on_train_batch_start`` returns -1 in a step that is looked into: that step is looked into at the next batch."""

    class Skipping(Plain):  # type: ignore[misc]
        batches = 0

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> Any:
            self.batches += 1
            return -1 if self.batches == skipped + 1 else None

        def on_train_epoch_end(self) -> None:
            self.net(torch.zeros(64, 1, 8, 8))  # would be counted

    keeper = Keeper(flops=True, trace_steps=1, report_dir=str(tmp_path / "profile"))
    fit(quiet, Skipping(), images(64), keeper=keeper, max_epochs=2)
    plain = fit(quiet, make("plain", pl), images(64), keeper=Keeper(flops=True), max_epochs=2)
    assert keeper.report.flops_per_step == plain.report.flops_per_step
    assert keeper.report.steps == skipped + 16 - 5, "warm-up, FLOPs, memory and trace are left out"
    assert (tmp_path / "profile" / "trace.json").exists()
    assert _get_current_dispatch_mode() is None


def test_a_step_that_draws_its_own_batches(quiet: dict[str, Any]) -> None:
    """With ``dataloader_iter`` the request for data comes in the middle of the step that is looked into."""

    class Drawing(Plain):  # type: ignore[misc]
        def training_step(self, dataloader_iter: Iterator[Any]) -> Any:  # type: ignore[override]
            (x, y), index, _ = next(dataloader_iter)
            if index == 3:  # the step that is looked into for memory
                time.sleep(0.1)
            return torch.nn.functional.cross_entropy(self.net(x), y)

    keeper = fit(quiet, Drawing(), images(80), images(8), max_epochs=1, val_check_interval=5)
    assert phases.DATA_WAIT in keeper.report.phases
    seconds = keeper.report.runs[0].samples["step_seconds"]
    assert all(0 < one < 0.1 for one in seconds)


def test_an_optimizer_that_is_none_of_torch(quiet: dict[str, Any]) -> None:
    """Lightning takes anything with an optimizer's methods under manual optimization."""

    class Wrapper:
        def __init__(self, inner: torch.optim.Optimizer) -> None:
            self.inner = inner
            self.param_groups, self.defaults, self.state = inner.param_groups, inner.defaults, inner.state

        def state_dict(self) -> Any:
            return self.inner.state_dict()

        def load_state_dict(self, state: Any) -> None:
            self.inner.load_state_dict(state)

        def zero_grad(self, set_to_none: bool = True) -> None:
            self.inner.zero_grad(set_to_none)

        def step(self, closure: Any = None) -> Any:
            return self.inner.step(closure)

    class Wrapped(type(make("manual", pl))):  # type: ignore[misc]
        def configure_optimizers(self) -> Any:
            return Wrapper(torch.optim.SGD(self.parameters(), lr=0.1))

    assert fit(quiet, Wrapped(), images(80), max_epochs=1).report.phases[phases.OPTIMIZER] > 0


def test_a_logger_that_fails_fails_once(quiet: dict[str, Any], tmp_path: Any) -> None:
    """The report of a broken run writes no scalars: the failing logger would fail again, and nothing would be undone."""

    class Failing(pl.loggers.CSVLogger):
        def log_metrics(self, metrics: Any, step: Any = None) -> None:
            if step is not None and step >= 9:
                raise RuntimeError("planted")

    module = make("plain", pl)
    trainer = pl.Trainer(
        **{**quiet, "logger": Failing(tmp_path)}, log_every_n_steps=1, callbacks=[Keeper(every_n_steps=10)]
    )
    with pytest.raises(RuntimeError, match="planted") as failure:
        trainer.fit(module, images(80))
    assert failure.value.__context__ is None
    assert "log" not in vars(module)
    assert "log_metrics" not in vars(trainer._logger_connector)


@pytest.mark.parametrize("error", [RuntimeError("planted"), KeyboardInterrupt()], ids=["error", "interrupt"])
@pytest.mark.parametrize("place", [2, 3, 5, 12, "validation"])
def test_broken_off(place: int | str, error: BaseException, quiet: dict[str, Any]) -> None:
    """In the step of the FLOPs, of memory, of the timeline, later, in validation: all is undone, the figures fit."""

    class Breaking(Plain):  # type: ignore[misc]
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if batch_idx == place:
                raise error
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            if place == "validation":
                raise error

    module, keeper = Breaking(), Keeper(flops=True)
    trainer = pl.Trainer(**quiet, max_epochs=1, num_sanity_val_steps=0, callbacks=[keeper])
    with pytest.raises((RuntimeError, SystemExit)):
        trainer.fit(module, images(80), images(8))
    assert _get_current_dispatch_mode() is None
    assert keeper.observed.clock._left == []
    assert "log" not in vars(module)
    assert not [name for name in vars(keeper) if name.startswith("on_")]
    assert type(trainer.profiler).__name__ == "PassThroughProfiler"
    assert keeper.has_report == (place not in (2, 3))
    if keeper.has_report:
        assert keeper.observed.steps.samples == 4 * keeper.report.steps


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        ({"max_steps": 3}, 2),
        ({"max_epochs": -1, "max_steps": 30, "limit_train_batches": 3}, 30 - 4),
        ({"max_steps": 5, "accumulate_grad_batches": 4}, 20 - 4),
        ({"max_epochs": 2, "val_check_interval": 1}, 40 - 4),
        ({"fast_dev_run": 4}, 3),
        ({"max_epochs": 1, "profiler": "simple"}, 20 - 4),
    ],
    ids=str,
)
def test_steps_that_are_timed(arguments: dict[str, Any], steps: int, quiet: dict[str, Any]) -> None:
    """All but warm-up, FLOPs and memory; in runs of fewer than eight batches all but the one that is counted."""
    keeper = fit(quiet, make("plain", pl), images(80), images(8), keeper=Keeper(flops=True), **arguments)
    assert keeper.report.steps == steps
    assert keeper.observed.steps.samples == 4 * steps
    assert keeper.report.flops_per_step is not None


def test_faults_of_steps_that_are_left_out(monkeypatch: pytest.MonkeyPatch, quiet: dict[str, Any]) -> None:
    """The first steps touch memory for the first time; their page faults say nothing of those that follow."""
    faults = 0

    class Faulting(Plain):  # type: ignore[misc]
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            nonlocal faults
            faults += 10_000 if batch_idx < 2 else 7
            return super().training_step(batch, batch_idx)

    monkeypatch.setattr("lightning_perf.profiling.callback_evidence.processor_state", lambda: (0.0, faults))
    keeper = fit(quiet, Faulting(), images(80), max_epochs=1)
    assert keeper.observed.processor.per_step(keeper.report.steps) == (0.0, 7.0)


def test_the_first_start_of_workers_is_no_reason_to_keep_them(quiet: dict[str, Any]) -> None:
    """One epoch starts its workers once, whatever ``persistent_workers`` says."""
    loader = DataLoader(images(64).dataset, batch_size=4, num_workers=1)
    report = fit(quiet, make("plain", pl), loader, max_epochs=1).report
    assert report.share(phases.WORKER_START) > 0.03
    assert not [one for one in report.advice if "persistent_workers" in one.lever]
