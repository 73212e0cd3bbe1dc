"""compare(): exact numbers on a fake clock, pairs and orders, what it does with failures and missing metrics."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import lightning_perf as lp
from lightning_perf.autopilot.compare import measure, monitored_metric
from lightning_perf.autopilot.stopwatch import Stopwatch, pick_metric
from lightning_perf.report import Run
from tests.contract.modules import images, make


class Opaque:
    """A batch without a tensor in it."""


class Clock:
    """Advances only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_stopwatch_numbers(ns: ModuleType, quiet: dict[str, Any]) -> None:
    """6 batches of 4 per epoch; 2 s each, 10 s for a validation: 2 samples/s, whatever the validation takes."""
    clock = Clock()

    class Time(ns.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            clock.now += 2.0

        def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            clock.now += 10.0
            pl_module.log("val_score", [0.1, 0.5, 0.9][trainer.current_epoch])

    watch = Stopwatch("val_score", "max", target=0.5, clock=clock)
    trainer = ns.Trainer(**{**quiet, "num_sanity_val_steps": 0}, max_epochs=3, callbacks=[watch, Time()])
    trainer.fit(make("plain", ns), images(), images(8, shuffle=False))
    run = watch.run("a", 3, 0)
    assert run.quantities["samples_per_second"] == 2.0
    assert run.quantities["train_seconds"] == 3 * (6 * 2 + 10)
    assert run.quantities["seconds_to_target"] == 44.0
    assert run.quantities["final_metric"] == pytest.approx(0.9)
    assert [at for at, _ in run.curves["val_score"]] == [22.0, 44.0, 66.0]
    assert len(run.curves["loss"]) == 18
    assert run.samples["batch_seconds"] == (2.0,) * 15


def test_stopwatch_says_what_is_missing(ns: ModuleType, quiet: dict[str, Any]) -> None:
    watch = Stopwatch("val_f1", target=2.0)
    trainer = ns.Trainer(**quiet, max_epochs=1, callbacks=[watch])
    trainer.fit(make("plain", ns), images(), images(8, shuffle=False))
    run = watch.run("a", 0, 0)
    assert "no 'val_f1'" in run.missing["final_metric"]
    assert "'val_acc'" in run.missing["final_metric"]
    assert "2 was not reached" in run.missing["seconds_to_target"]


def test_loaders_without_batch_size(ns: ModuleType, quiet: dict[str, Any]) -> None:
    """A batch whose size cannot be told: no samples per second, and the reason."""

    class Odd(ns.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return self.layer(torch.ones(1, 1)).sum()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    watch = Stopwatch()
    opaque = DataLoader(range(6), collate_fn=lambda _: Opaque())  # type: ignore[arg-type]
    ns.Trainer(**quiet, max_epochs=1, callbacks=[watch]).fit(Odd(), opaque)
    run = watch.run("a", 0, 0)
    assert run.quantities["samples_per_second"] is None
    assert "size of a batch could not be told" in run.missing["samples_per_second"]
    assert "no validation ran" in run.missing["final_metric"]


def test_what_was_trained_before_is_refused_and_seeds_stay_the_users(
    ns: ModuleType, quiet: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    monkeypatch.delenv("PL_SEED_WORKERS", raising=False)
    module = make("plain", ns)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)

    def again() -> tuple[Any, Any]:
        return ns.Trainer(**quiet, max_steps=1), module

    with pytest.raises(ValueError, match="'a' returned what has been trained already; build Trainer and module"):
        lp.compare({"a": again, "b": lambda: (ns.Trainer(**quiet, max_steps=1), make("plain", ns))}, pairs=2)
    assert torch.equal(torch.rand(2), expected)
    assert (os.environ["PL_GLOBAL_SEED"], "PL_SEED_WORKERS" in os.environ) == ("7", False)


def test_what_has_been_in_a_run_before_is_refused(ns: ModuleType, quiet: dict[str, Any]) -> None:
    """An early stopping that has run remembers its best value, and would end the next runs early without a word."""
    stop = ns.callbacks.EarlyStopping("val_loss", patience=2)
    lossless = lp.lossless()
    precision = ns.plugins.precision.MixedPrecision("bf16-mixed", "cpu")
    for arguments, name in (
        ({"callbacks": [stop]}, "EarlyStopping"),
        ({"callbacks": lossless}, type(lossless[0]).__name__),
        ({"plugins": [precision]}, "MixedPrecision"),
    ):

        def fit(arguments: Any = arguments) -> Any:
            return ns.Trainer(**quiet, max_epochs=1, **arguments), make("plain", ns), Data(ns)

        with pytest.raises(ValueError, match=f"whose {name} has been in a run before.*build it inside"):
            lp.compare({"a": fit, "b": fit}, pairs=1)


def test_names_of_metrics() -> None:
    assert pick_metric(["train_loss", "val_loss", "val_acc"]) == "val_acc"
    assert pick_metric(["train_loss", "val_z", "val_b"]) == "val_b"
    assert pick_metric(["train_loss"]) is None


def test_pairs_share_a_seed_and_orders_alternate() -> None:
    """Each pair has one run of each variant; the second pair runs in the reverse order of the first."""
    calls: list[tuple[str, int]] = []

    def run(variant: str, seed: int, position: int) -> Run:
        calls.append((variant, seed))
        speed = {"a": 100.0, "b": 150.0}[variant] + seed
        return Run(variant, seed, position, quantities={"samples_per_second": speed, "peak_memory": 1.0})

    report = measure(["a", "b"], run, pairs=4, seed=10)
    assert sorted(calls) == [(name, seed) for name in "ab" for seed in (10, 11, 12, 13)]
    orders = ["".join(name for name, seed in calls if seed == pair) for pair in (10, 11, 12, 13)]
    assert orders[1] == orders[0][::-1]
    assert orders[3] == orders[2][::-1]
    ratio = report.ratio("samples_per_second", "b")
    assert ratio is not None
    assert ratio.estimate == pytest.approx(1.45, abs=0.01)
    assert report.resolution is not None


def test_a_failing_variant_is_a_verdict() -> None:
    def run(variant: str, seed: int, position: int) -> Run:
        if variant == "b":
            raise [RuntimeError, ValueError][seed]("diverged")
        return Run(variant, seed, position, quantities={"samples_per_second": 1.0})

    report = measure(["a", "b"], run, pairs=2)
    assert [one.error for one in report.runs_of("b")] == ["RuntimeError: diverged", "ValueError: diverged"]
    assert "diverged" in report.table()
    assert measure(["a", "c"], run, pairs=1, metric="val_nll", mode="min").quantity("final_metric").better == "lower"
    with pytest.raises(RuntimeError, match="every run of the baseline 'b' failed, first with RuntimeError: diverged"):
        measure(["b", "a"], run, pairs=2)


def test_compare_end_to_end(ns: ModuleType, quiet: dict[str, Any], tmp_path: Path) -> None:
    """Two variants, three pairs: equal seeds give equal quality for a lossless lever; files are written and read."""

    def fit(callbacks: list[Any]) -> Any:
        return ns.Trainer(**quiet, max_epochs=2, callbacks=callbacks), make("plain", ns), Data(ns)

    report = lp.compare(
        {"plain": lambda: fit([]), "fast logging": lambda: fit([lp.FastLogging()])}, pairs=3, target=0.0
    )
    assert report.baseline == "plain"
    assert report.values("final_metric", "plain") == report.values("final_metric", "fast logging")
    assert report.difference("final_metric", "fast logging").estimate == 0.0  # type: ignore[union-attr]
    text = report.table()
    for words in ("fast logging", "final val_acc", "peak memory", "samples/s"):
        assert words in text
    assert json.loads(report.to_json(tmp_path / "r.json"))
    assert lp.Report.from_json(tmp_path / "r.json").table() == text
    assert "<svg" in report.to_html(tmp_path / "r.html").read_text()


def Data(ns: ModuleType) -> Any:
    """A data module of that namespace."""

    class Images(ns.LightningDataModule):
        def train_dataloader(self) -> Any:
            return images()

        def val_dataloader(self) -> Any:
            return images(8, shuffle=False)

    return Images()


def test_the_monitor_of_a_checkpoint_names_the_metric(ns: ModuleType, quiet: dict[str, Any]) -> None:
    saver = ns.callbacks.ModelCheckpoint(monitor="val_loss")
    assert monitored_metric(ns.Trainer(**{**quiet, "enable_checkpointing": True}, callbacks=[saver])) == "val_loss"
    assert monitored_metric(ns.Trainer(**quiet)) is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"variants": {"a": None}}, "nothing to compare"),
        ({"variants": {"a": None, "b": None}, "pairs": 0}, "pairs=0 runs nothing"),
        ({"variants": {"a": None, "b": None}, "mode": "up"}, "mode='up' is unknown"),
        ({"variants": {"a": lambda: 3, "b": lambda: 3}}, r"'[ab]' returned 3; it must return \(trainer, module\)"),
    ],
    ids=["one variant", "no pairs", "mode", "factory"],
)
def test_bad_arguments(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        lp.compare(**arguments)
