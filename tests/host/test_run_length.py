"""How many steps a run takes, told before it takes them: with accumulation that changes between epochs."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch

import lightning_perf as lp
from lightning_perf.host import progress_of
from lightning_perf.host.run_length import accumulation_in, configured_steps, optimizer_steps
from lightning_perf.quantization.callback_schedule import Schedule, batches_of_run
from tests.contract.modules import images, make

# Six batches an epoch, counted by hand.
CASES: list[tuple[dict[int, int] | None, dict[str, Any], int]] = [
    ({0: 4}, {"max_epochs": 3}, 6),
    ({0: 1, 1: 4}, {"max_epochs": 3}, 10),
    ({2: 3}, {"max_epochs": 3}, 14),
    ({0: 2, 7: 1}, {"max_epochs": 2}, 6),
    ({0: 1, 1: 4}, {"max_epochs": 3, "max_steps": 7}, 7),
    ({0: 4}, {"max_epochs": -1, "max_steps": 3}, 3),
    (None, {"max_epochs": 3, "accumulate_grad_batches": 4}, 6),
]


@pytest.mark.parametrize(("scheduling", "arguments", "steps"), CASES, ids=str)
def test_the_number_of_steps(
    scheduling: dict[int, int] | None, arguments: dict[str, Any], steps: int, ns: ModuleType, quiet: dict[str, Any]
) -> None:
    told: set[float | None] = set()

    class Ask(ns.Callback):
        def on_train_start(self, trainer: Any, *_: Any) -> None:
            told.update((optimizer_steps(trainer), configured_steps(trainer, trainer.max_steps)))

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            told.add(progress_of(trainer).total)

    callbacks = [Ask()]
    if scheduling is not None:
        callbacks.append(ns.callbacks.GradientAccumulationScheduler(dict(scheduling)))
    trainer = ns.Trainer(**quiet, **arguments, callbacks=callbacks)
    trainer.fit(make("plain", ns), images())
    assert trainer.global_step == steps
    assert told == {steps}


def test_batches_of_so_many_steps(ns: ModuleType, quiet: dict[str, Any]) -> None:
    """Moments of QAT are fractions of the batches: 18 batches of ten make the twelve steps of this run."""
    for steps, batches in ((7, 7), (10, 10), (12, 18), (13, 20), (16, 30)):
        assert batches_of_run(10, -1, steps, {0: 1, 1: 4}) == batches
    scheduler = ns.callbacks.GradientAccumulationScheduler({0: 1, 1: 4})
    starts: list[int] = []

    class Ask(ns.Callback):
        def on_train_start(self, trainer: Any, *_: Any) -> None:
            schedule = Schedule(0.5, 1.0, 1.0)
            schedule.resolve(trainer, lambda line: None)
            starts.extend(batches for batches in range(20) if schedule.started(batches))

    trainer = ns.Trainer(**quiet, max_steps=8, callbacks=[Ask(), scheduler])
    trainer.fit(make("plain", ns), images())
    assert (trainer.global_step, starts[0]) == (8, 6)  # of 12 batches


def test_a_range_test_accumulates_as_the_run_will(ns: ModuleType, quiet: dict[str, Any]) -> None:
    found = []
    for arguments in (
        {"accumulate_grad_batches": 3},
        {"callbacks": [ns.callbacks.GradientAccumulationScheduler({0: 3})]},
    ):
        factory = lp.OptimizerFactory("adamw", lr="auto")
        callbacks = [factory, *arguments.pop("callbacks", [])]
        trainer = ns.Trainer(**{**quiet, **arguments}, max_epochs=1, callbacks=callbacks)
        torch.manual_seed(11)
        trainer.fit(make("plain", ns), images())
        found.append([line for line in factory.messages if "range test" in line])
    assert found[0] == found[1]
    assert len(found[0]) == 1


def test_the_factor_of_an_epoch(ns: ModuleType, quiet: dict[str, Any]) -> None:
    scheduler = ns.callbacks.GradientAccumulationScheduler({2: 3, 5: 1})
    trainer = ns.Trainer(**quiet, callbacks=[scheduler])
    assert [accumulation_in(trainer, epoch) for epoch in range(7)] == [1, 1, 3, 3, 3, 1, 1]
    assert accumulation_in(ns.Trainer(**quiet, accumulate_grad_batches=2), 5) == 2
