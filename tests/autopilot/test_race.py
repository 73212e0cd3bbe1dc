"""race() on modules that train: the pacer, divergence, a clean process, configs that `fit` accepts."""

from __future__ import annotations

import json
import logging
import math
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_perf as lp
from lightning_perf.autopilot.bystanders import make_way
from lightning_perf.autopilot.candidates import BASELINE, config_with, default_candidates, given_candidates
from lightning_perf.autopilot.halving import Pace
from lightning_perf.autopilot.pacer import STAY_OUT, Pacer
from lightning_perf.autopilot.stopwatch import Stopwatch
from lightning_perf.optim.registry import list_optimizers
from tests.contract.modules import images, make

SGD = {"optimizer": "sgd", "lr": 0.05, "schedule": "constant"}
DIVERGES = {"optimizer": "sgd", "lr": 1e20, "schedule": "constant"}


def line(samples: int = 32, **options: Any) -> DataLoader:
    x = torch.linspace(-1, 1, samples).unsqueeze(1)
    return DataLoader(TensorDataset(x, 3 * x + 1), batch_size=4, **options)


def module_of(ns: ModuleType, lr: float = 1e-3, schedule: Callable[[Any, Any], Any] | None = None) -> Any:
    class Line(ns.LightningModule):
        """A straight line, with a learning rate that is too small."""

        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(1, 1)

        def step(self, batch: Any) -> torch.Tensor:
            return nn.functional.mse_loss(self.net(batch[0]), batch[1])

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return self.step(batch)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.step(batch))

        def train_dataloader(self) -> Any:
            return line(shuffle=True)

        def val_dataloader(self) -> Any:
            return line()

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=lr)
            return optimizer if schedule is None else ([optimizer], [schedule(optimizer, self)])

    return Line()


@pytest.fixture
def training(quiet: dict[str, Any]) -> Callable[[], tuple[Any, ...]]:
    import lightning.pytorch as pl

    return lambda: (pl.Trainer(**quiet, max_epochs=20), module_of(pl))


def paced(ns: ModuleType, quiet: dict[str, Any], pace: Pace, module: Any, **arguments: Any) -> tuple[Any, Any]:
    """A trainer after a paced fit, and the run."""
    watch, pacer = Stopwatch(), Pacer(pace)
    trainer = ns.Trainer(**{"max_epochs": 20, **quiet, **arguments})
    trainer.callbacks[:0] = [watch, pacer]
    trainer.fit(module)
    return trainer, pacer.finished(watch.run("a", 0, 0))


def test_a_paced_fit(ns: ModuleType, quiet: dict[str, Any]) -> None:
    """8 batches an epoch: 20 steps are two epochs and a half; four validations, the last one after the last step."""
    totals: list[float] = []

    def sized(optimizer: Any, module: Any) -> Any:
        totals.append(module.trainer.estimated_stepping_batches)
        return torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=totals[-1])

    trainer, run = paced(ns, quiet, Pace(20, 4), module_of(ns, schedule=sized), min_epochs=5)
    assert trainer.global_step == 20
    assert (run.value("steps"), run.value("validations"), run.value("configured_steps")) == (20, 4, 160)
    assert len(run.curves["val_loss"]) == 4
    assert run.value("lr_share") == pytest.approx(1e-3 / 5e-2)
    assert totals == [20]
    assert (trainer.max_steps, trainer.val_check_interval, trainer.check_val_every_n_epoch) == (-1, 1.0, 1)
    assert trainer.min_epochs == 5


@pytest.mark.parametrize("arguments", [{"accumulate_grad_batches": 3}, {"max_steps": 7}, {"max_epochs": 1}])
def test_the_last_step_is_validated(ns: ModuleType, quiet: dict[str, Any], arguments: dict[str, Any]) -> None:
    """Also where accumulation does not divide the epoch, and where the user's own end comes first."""
    trainer, run = paced(ns, quiet, Pace(9, 3), module_of(ns), **arguments)
    expected = {"accumulate_grad_batches": 9, "max_steps": 7, "max_epochs": 8}[next(iter(arguments))]
    assert trainer.global_step == expected
    if "accumulate_grad_batches" in arguments:
        with torch.no_grad():
            x, y = line().dataset.tensors
            value = nn.functional.mse_loss(trainer.lightning_module.net(x), y)
        assert run.value("final_metric") == pytest.approx(float(value), rel=1e-5)


def test_a_slow_run_is_stopped_and_validated(ns: ModuleType, quiet: dict[str, Any]) -> None:
    now = [0.0]
    watch, pacer = Stopwatch(), Pacer(Pace(100, 1, seconds=10.0), clock=lambda: now[0])

    class Slow(ns.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            now[0] += 1.0

    trainer = ns.Trainer(**quiet, max_epochs=20, callbacks=[watch, pacer, Slow()])
    trainer.fit(module_of(ns))
    run = pacer.finished(watch.run("a", 0, 0))
    assert run.value("steps") == 16  # looked at after every eighth batch
    assert run.notes == ("stopped after 10 s, at step 16 of 100",)
    assert len(run.curves["val_loss"]) == 1


def test_divergence_ends_a_fit_early(ns: ModuleType, quiet: dict[str, Any]) -> None:
    _, run = paced(ns, quiet, Pace(150, 1), module_of(ns, lr=1e20))
    assert run.error == "diverged: the loss was not finite at step 16"
    _, short = paced(ns, quiet, Pace(4, 1), module_of(ns, lr=1e20))
    assert short.error is not None
    assert short.error.startswith("diverged: loss ended at")
    _, fine = paced(ns, quiet, Pace(4, 1), module_of(ns))
    assert fine.error is None


def test_what_stays_out_of_a_race(ns: ModuleType, quiet: dict[str, Any]) -> None:
    saver, stopper = ns.callbacks.ModelCheckpoint(monitor="val_loss"), ns.callbacks.EarlyStopping("val_loss")
    monitor = ns.callbacks.Timer()
    bars = {**quiet, "enable_checkpointing": True, "enable_progress_bar": True}
    trainer = ns.Trainer(**bars, callbacks=[saver, stopper, monitor])
    make_way(trainer, STAY_OUT)
    assert trainer.callbacks == [monitor]


def test_a_race_end_to_end(training: Callable[[], Any], tmp_path: Path) -> None:
    """A learning rate that is far too small loses; one that diverges is a verdict; the page draws the curves."""
    logging.getLogger("lightning.pytorch").setLevel(logging.INFO)
    os.environ.pop("PL_GLOBAL_SEED", None)
    before = torch.get_rng_state(), random.getstate()
    report = lp.race(training, optimizers=[SGD, DIVERGES], budget="40 steps", seeds=3)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert "PL_GLOBAL_SEED" not in os.environ
    assert logging.getLogger("lightning.pytorch").level == logging.INFO

    assert report.variants == (BASELINE, "sgd lr=0.05 constant", "sgd lr=1e+20 constant")
    assert report.quantity("final_metric").better == "lower"
    for run in report.runs_of("sgd lr=1e+20 constant"):
        assert run.error is not None
        assert run.error.startswith("diverged")
    table = report.table(250)
    assert "Pick: sgd lr=0.05 constant: lp.OptimizerFactory('sgd', lr=0.05, schedule='constant')" in table
    assert "time to val_loss" in table
    page = report.to_html(tmp_path / "race.html").read_text()
    assert "val_loss over seconds" in page
    assert lp.Report.from_json(report.to_json()).table(250) == table


def test_runs_of_one_seed_see_the_same_data_and_start(quiet: dict[str, Any]) -> None:
    """The first batches and the first weights are equal over candidates, and differ between seeds."""
    import lightning.pytorch as pl

    firsts: list[tuple[float, float]] = []

    class Spy(pl.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step == 0:
                firsts.append((float(batch[0].sum()), float(pl_module.net.weight)))

    def training() -> Any:
        return pl.Trainer(**quiet, max_epochs=20, callbacks=[Spy()]), module_of(pl)

    lp.race(training, optimizers=[SGD, {"optimizer": "adamw", "lr": 0.1}], budget="4 steps", seeds=2)
    probe, *runs = firsts
    assert len(runs) == 6
    assert len(set(runs[:3])) == len(set(runs[3:])) == 1
    assert runs[0] == probe
    assert runs[0] != runs[3]


def test_equals_are_no_difference(training: Callable[[], Any]) -> None:
    """The user's own optimizer once more, under another name: every seed gives the same run."""
    twin = {"optimizer": "sgd", "lr": 1e-3, "options": {"momentum": 0.0}, "weight_decay": 0.0}
    report = lp.race(training, optimizers=[twin], budget="20 steps", seeds=3)
    assert report.values("final_metric", report.variants[1]) == pytest.approx(
        report.values("final_metric", BASELINE), rel=1e-5
    )
    # Which of two equals is the faster one by a hair is up to the machine; which ends better is not.
    assert "By final val_loss: no candidate did better than own optimizer." in report.table(250)


def test_callbacks_that_give_way(quiet: dict[str, Any]) -> None:
    """A factory of the user's own to the candidate's, and what would end a run before its time, even if made once."""
    import lightning.pytorch as pl

    once = pl.callbacks.EarlyStopping("val_loss", stopping_threshold=1e9)

    def training() -> Any:
        callbacks = [lp.OptimizerFactory("adamw", lr=0.1), once]
        return pl.Trainer(**quiet, max_epochs=20, callbacks=callbacks), module_of(pl)

    report = lp.race(training, optimizers=[SGD], budget="20 steps", seeds=1)
    assert [(run.error, run.value("steps")) for run in report.runs] == [(None, 20), (None, 20)]


def test_an_interrupted_fit_ends_the_race_with_a_report(quiet: dict[str, Any], tmp_path: Path) -> None:
    """Ctrl-C in the third run: what is known is reported, interrupts are heard again, and the race can go on."""
    import lightning.pytorch as pl

    runs = [0]
    stop_at = [3]

    class Interrupt(pl.Callback):
        def on_train_start(self, *_: Any) -> None:
            runs[0] += 1
            if runs[0] == stop_at[0]:
                raise KeyboardInterrupt

    def training() -> Any:
        return pl.Trainer(**quiet, max_epochs=20, callbacks=[Interrupt()]), module_of(pl)

    settings: dict[str, Any] = {"optimizers": [SGD], "budget": "8 steps", "seeds": 2, "folder": tmp_path / "race"}
    handler = signal.getsignal(signal.SIGINT)
    report = lp.race(training, **settings)
    assert signal.getsignal(signal.SIGINT) is handler
    assert "Interrupted after" in report.table(200)
    kept = sorted(path.name for path in (tmp_path / "race" / "runs").iterdir())
    assert len(kept) == 2
    assert json.loads((tmp_path / "race" / "race.json").read_text())["settings"]["budget"] == "8 steps"

    with pytest.raises(ValueError, match="holds a race"):
        lp.race(training, **settings)
    runs[0], stop_at[0] = 0, 0
    whole = lp.race(training, **settings, resume=True)
    assert runs[0] == 3  # the probe and one of four are there
    assert "Interrupted" not in whole.table(200)

    stop_at[0] = 4
    with pytest.raises(KeyboardInterrupt):  # nothing is known yet
        lp.race(training, **{**settings, "folder": None})


def test_functions_that_give_nothing_new(training: Callable[[], Any], quiet: dict[str, Any]) -> None:
    import lightning.pytorch as pl

    module = module_of(pl)
    with pytest.raises(ValueError, match="has been trained already; build"):
        lp.race(lambda: (pl.Trainer(**quiet, max_epochs=20), module), optimizers=[SGD], budget="4 steps")
    averages = pl.callbacks.StochasticWeightAveraging(1e-3)
    with pytest.raises(ValueError, match="the function returned a Trainer whose StochasticWeightAveraging has been in"):
        lp.race(
            lambda: (pl.Trainer(**quiet, max_epochs=20, callbacks=[averages]), module_of(pl)),
            optimizers=[SGD], budget="4 steps",
        )  # fmt: skip
    with pytest.raises(ValueError, match="the function returned 3; it must return"):
        lp.race(lambda: 3, optimizers=[SGD], budget="4 steps")  # type: ignore[arg-type, return-value]


def test_manual_optimization_is_refused_in_the_report(quiet: dict[str, Any]) -> None:
    """Candidates cannot replace optimizers that the module steps itself; the reason is their verdict."""
    import lightning.pytorch as pl

    class Data(pl.LightningDataModule):
        def train_dataloader(self) -> Any:
            return images()

        def val_dataloader(self) -> Any:
            return images(8, shuffle=False)

    report = lp.race(
        lambda: (pl.Trainer(**quiet, max_epochs=3), make("manual", pl), Data()),
        optimizers=[SGD], budget="6 steps", seeds=1,
    )  # fmt: skip
    assert "which steps" in report.table(400) or "steps them by hand" in report.table(400)
    assert "Keep own optimizer" in report.table(400)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"seeds": 0}, "seeds=0 runs no finalist"),
        ({"mode": "up"}, "mode='up' is unknown"),
        ({"budget": "soon"}, "budget='soon' is neither"),
        ({"optimizers": ["adamv"]}, "Unknown optimizer 'adamv'"),
        ({"optimizers": [{"optimizer": "sgd", "rate": 1}]}, "are no arguments of OptimizerFactory"),
        ({"optimizers": []}, "names no candidate"),
        ({"optimizers": [SGD, SGD]}, "holds equal candidates"),
        ({"overrides": ["--trainer.max_epochs=1"]}, "are for a config"),
        ({"resume": True}, "needs the folder of the race"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_arguments(arguments: dict[str, Any], words: str, training: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=words):
        lp.race(training, **arguments)
    with pytest.raises(ValueError, match=r"'no\.yaml' does not exist"):
        lp.race("no.yaml")


def test_default_candidates() -> None:
    """All are registered and can be built; those of a fine-tuning module are scaled down to its learning rate."""
    usual = default_candidates()
    known = {row.name for row in list_optimizers()} | {"auto"}
    assert len({one.name for one in usual}) == len(usual) >= 9
    for one in usual:
        assert one.arguments is not None
        assert one.arguments["optimizer"] in known
        assert one.factory() is not None
    assert [one.arguments for one in default_candidates(0.5)] == [one.arguments for one in usual]
    tuned = {one.arguments["lr"] for one in default_candidates(0.01) if one.arguments["optimizer"] == "adamw"}  # type: ignore[index]
    assert tuned == {3e-5, 1e-5, 1e-4, 3e-6}
    assert all(one.arguments is not None and one.arguments["lr"] > 0 for one in default_candidates(1e-4))


def test_candidates_as_a_grid() -> None:
    found = given_candidates(
        [{"optimizer": "adamw", "lr": [1e-3, 1e-2], "schedule": ["constant", "wsd"], "warmup": 10}]
    )
    assert [one.arguments for one in found] == [
        {"optimizer": "adamw", "lr": lr, "schedule": schedule, "warmup": 10}
        for lr in (1e-3, 1e-2)
        for schedule in ("constant", "wsd")
    ]
    assert [one.name for one in given_candidates("rmsprop")] == ["rmsprop warmup_linear"]
    assert found[0].slug == "adamw-lr-0.001-constant-warmup-10"


def test_the_callback_takes_its_place_in_a_config(tmp_path: Path) -> None:
    candidate = given_candidates([{"optimizer": "sgd", "lr": 0.1, "options": {"nesterov": True}}])[0]
    line_ = {
        "class_path": "lightning_perf.OptimizerFactory",
        "init_args": {"optimizer": "sgd", "lr": 0.1, "options": {"nesterov": True}},
    }
    other = {"class_path": "lightning_perf.FastLogging"}
    (tmp_path / "data.yaml").write_text("root: here\n")
    for callbacks, expected in [
        (None, [line_]),
        (other, [other, line_]),
        ([other, "OptimizerFactory"], [other, line_]),
        (
            [{"class_path": "lightning_perf.OptimizerFactory", "init_args": {"optimizer": "adamw"}}, other],
            [other, line_],
        ),
    ]:
        config = tmp_path / "my.yaml"
        config.write_text(yaml.safe_dump({"trainer": {"max_epochs": 1, "callbacks": callbacks}, "data": "data.yaml"}))
        assert yaml.safe_load(config_with(config, candidate)) == {
            "trainer": {"max_epochs": 1, "callbacks": expected},
            "data": {"root": "here"},
        }
    config.write_text("seed_everything: 1\n")
    assert yaml.safe_load(config_with(config, candidate))["trainer"] == {"callbacks": [line_]}
    config.write_text("- 1\n")
    with pytest.raises(ValueError, match="holds no mapping"):
        config_with(config, candidate)


def test_results_on_disk_are_strict_json(training: Callable[[], Any], tmp_path: Path) -> None:
    lp.race(training, optimizers=[DIVERGES], budget="8 steps", seeds=1, folder=tmp_path)

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    files = [*(tmp_path / "runs").iterdir(), tmp_path / "race.json"]
    assert len(files) == 4
    for path in files:
        json.loads(path.read_text(), parse_constant=refuse)
    assert math.isfinite(
        json.loads((tmp_path / "runs" / "probe_own-optimizer_seed0.json").read_text())["quantities"]["steps"]
    )
