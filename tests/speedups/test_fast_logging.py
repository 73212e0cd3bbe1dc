"""FastLogging reports what Lightning reports, bit for bit, and leaves nothing behind."""

from __future__ import annotations

import copy
import importlib
import pickle
import random
from collections import Counter
from types import MethodType, ModuleType
from typing import Any

import lightning.pytorch
import pytest
import torch
from lightning.pytorch.trainer.connectors.logger_connector import result as stock_results

from lightning_perf.host import Undo
from lightning_perf.host.fast_log import FastLog, speed_up_log
from lightning_perf.host.fast_results import Row
from lightning_perf.speedups.fast_logging import FastLogging
from tests.speedups.logging_cases import (
    BOTH,
    CASES,
    TRAIN_SIZES,
    Case,
    Journal,
    bits,
    loader,
    log_b,
    log_kinds,
    make_module,
    make_trainer,
    run,
    val_loaders,
)


@pytest.mark.parametrize("name", CASES)
def test_shows_what_lightning_shows(name: str, ns: ModuleType, quiet: dict[str, Any]) -> None:
    stock, fast = (run(ns, CASES[name], quiet, fast) for fast in (False, True))
    assert len(stock[0]) > 20
    for before, after in zip(stock[0], fast[0], strict=True):
        assert before == after
    assert stock[1:] == fast[1:]


@pytest.mark.parametrize("name", ["kinds_sum", "changing_types", "batch_sizes"])
def test_arithmetic_of_other_devices(name: str, quiet: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What the short path does with tensors that are not on the CPU, done here with tensors that are."""
    monkeypatch.setattr(Row, "_add_on_host", Row._add_on_device)
    stock, fast = (run(lightning.pytorch, CASES[name], quiet, fast) for fast in (False, True))
    assert stock == fast


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["kinds_both", "reductions", "changing_types", "torchmetrics", "read_inside"])
def test_on_a_gpu(name: str, quiet: dict[str, Any]) -> None:
    stock, fast = (run(lightning.pytorch, CASES[name], {**quiet, "accelerator": "gpu"}, fast) for fast in (False, True))
    assert stock == fast


def test_the_short_path_is_taken(quiet: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning's own method sees only the first call of each kind and the first batch of each epoch."""
    calls = []
    stock, learn = lightning.pytorch.LightningModule.log, FastLog._learn

    def counted(self: FastLog, call: tuple[Any, ...], arguments: tuple[Any, ...]) -> None:
        calls.append(call[0])
        learn(self, call, arguments)

    monkeypatch.setattr(FastLog, "_learn", counted)
    case = Case({"training_step": log_b, "validation_step": log_b})
    run(lightning.pytorch, case, quiet, fast=True)
    assert lightning.pytorch.LightningModule.log is stock
    # Batches: validate 1 of 3, sanity 1 of 1, three epochs of (training 1 of 5, validation 0 of 3), test 1 of 3.
    assert Counter(calls) == {"training_step": 3, "validation_step": 1 + 1, "test_step": 1}


@pytest.mark.parametrize("reduce_fx", [torch.mean, torch.sum])
@pytest.mark.parametrize("doubles", [False, True])
def test_sums_on_the_host_round_like_float32(reduce_fx: Any, doubles: bool) -> None:
    """Thousands of values of all magnitudes, against the stock arithmetic on tensors."""
    generator = random.Random(5)
    trainer = lightning.pytorch.Trainer(logger=False, barebones=True, accelerator="cpu")
    undo = Undo()
    module = make_module(lightning.pytorch, Case({}))
    speed_up_log(trainer, module, undo)
    fast: Any = trainer.fit_loop.epoch_loop._results
    stock: Any = stock_results._ResultCollection(training=True)
    arguments = {"on_step": False, "on_epoch": True, "reduce_fx": reduce_fx}
    for collection in (fast, stock):
        collection.log("training_step", "a", torch.tensor(0.1), batch_size=3, **arguments)
    row = fast["training_step.a"].__dict__["_lightning_perf_row"]
    for index in range(4000):
        magnitude = generator.choice((-44, -38, -20, -3, 0, 3, 20, 36))
        dtype = torch.float64 if doubles and index > 2000 and index % 2 else torch.float32
        value = torch.tensor(generator.gauss(0, 1) * 10.0**magnitude, dtype=dtype)
        size = generator.choice((1, 2, 3, 31, 4097, 2**24))
        row.record(value, size)
        stock.update_metrics("training_step.a", value, size)
        if index % 100 == 0:
            assert bits(fast["training_step.a"].value) == bits(stock["training_step.a"].value)
    assert bits(fast.metrics(False)["log"]) == bits(stock.metrics(False)["log"])
    assert repr(fast) == repr(stock)
    for copied in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert type(copied) is type(stock)
        assert type(copied["training_step.a"]) is type(stock["training_step.a"])
        assert repr(copied) == repr(stock)
    undo.run()
    assert type(fast) is type(stock)
    assert vars(fast["training_step.a"]).keys() == vars(stock["training_step.a"]).keys()


def test_lightnings_errors_stay(ns: ModuleType, quiet: dict[str, Any]) -> None:
    """A name logged with other arguments, a value with several elements, a nested dict, a forbidden hook."""

    def two_ways(module: Any, loss: torch.Tensor, step: int) -> None:
        module.log("a", loss)
        module.log("a", loss, on_epoch=step == 3)

    def too_large(module: Any, loss: torch.Tensor, step: int) -> None:
        module.log("a", torch.ones(1 + (step == 3)))

    def nested(module: Any, loss: torch.Tensor, step: int) -> None:
        module.log("a", {"b": {"c": loss}} if step == 3 else loss)

    def unhashable(module: Any, loss: torch.Tensor, step: int) -> None:
        module.log("a", loss, reduce_fx=[] if step == 3 else "mean")

    for hook in (two_ways, too_large, nested, unhashable):
        texts = []
        for fast in (False, True):
            case = Case({"training_step": hook}, {"num_sanity_val_steps": 0})
            module = make_module(ns, case)
            trainer = make_trainer(ns, case, quiet, Journal(), fast)
            with pytest.raises(Exception) as caught:
                trainer.fit(module, loader(TRAIN_SIZES, 1))
            texts.append((type(caught.value), str(caught.value)))
            assert module.step == 3
        assert texts[0] == texts[1]


def test_warnings_come_once(ns: ModuleType, quiet: dict[str, Any]) -> None:
    """The missing logger and the integer that is averaged are still warned about."""
    case = Case({"training_step": lambda module, loss, step: module.log(f"own_{ns.__name__}", step and 1, logger=True)})
    module = make_module(ns, case)
    with pytest.warns(UserWarning, match="no logger configured"):
        ns.Trainer(**quiet, max_epochs=1, callbacks=[FastLogging()]).fit(module, loader(TRAIN_SIZES, 1))

    def integer_later(module: Any, loss: torch.Tensor, step: int) -> None:
        module.log(f"int_{ns.__name__}", loss if step < 3 else torch.tensor(step))

    case = Case({"training_step": integer_later})
    module = make_module(ns, case)
    with pytest.warns(UserWarning, match="needs to be floating"):
        ns.Trainer(**quiet, max_epochs=1, callbacks=[FastLogging()]).fit(module, loader(TRAIN_SIZES, 1))


def collections_of(trainer: Any) -> list[Any]:
    epoch_loop = trainer.fit_loop.epoch_loop
    loops = (epoch_loop, epoch_loop.val_loop, trainer.validate_loop, trainer.test_loop)
    return [loop._results for loop in loops]


@pytest.mark.parametrize("fails", [False, True])
def test_leaves_nothing_behind(fails: bool, ns: ModuleType, quiet: dict[str, Any]) -> None:
    """Module, collections and result metrics are the stock ones after fit and after an exception; a new fit works."""

    class Bomb(ns.Callback):
        armed = fails

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            if len(trainer.callbacks) > 1:
                assert isinstance(vars(pl_module)["log"], FastLog)
                assert type(trainer.fit_loop.epoch_loop._results) is not type(fresh)
            if self.armed and trainer.global_step == 4:
                raise RuntimeError("planted")

    case = Case({"training_step": log_b, "validation_step": log_b})
    fresh = ns.Trainer(**quiet).fit_loop.epoch_loop._results
    module, bomb = make_module(ns, case), Bomb()
    before = list(vars(module))
    trainer = ns.Trainer(**quiet, max_epochs=2, callbacks=[FastLogging(), bomb])
    if fails:
        stock = ns.Trainer(**quiet, max_epochs=2, callbacks=[bomb])
        for each, own in ((trainer, module), (stock, make_module(ns, case))):
            with pytest.raises(RuntimeError, match="planted"):
                each.fit(own, loader(TRAIN_SIZES, 1), val_loaders(case))
        assert repr(collections_of(trainer)) == repr(collections_of(stock))
    for _ in range(2):
        bomb.armed = False
        assert "log" not in vars(module)
        assert [key for key in vars(module) if key in before] == before
        for results in collections_of(trainer):
            assert type(results) is type(fresh)
            assert vars(results).keys() == vars(fresh).keys()
            for metric in results.values():
                assert type(metric).__module__ == type(fresh).__module__
                assert "_lightning_perf_row" not in vars(metric)
                assert isinstance(vars(metric)["value"], torch.Tensor)
        trainer.fit_loop.max_epochs += 1
        trainer.fit(module, loader(TRAIN_SIZES, 1), val_loaders(case))
    stock, other = ns.Trainer(**quiet, max_epochs=1), make_module(ns, case)
    stock.fit(other, loader(TRAIN_SIZES, 1), val_loaders(case))
    again = ns.Trainer(**quiet, max_epochs=1, callbacks=[FastLogging()])
    other = make_module(ns, case)
    again.fit(other, loader(TRAIN_SIZES, 1), val_loaders(case))
    assert bits(stock.callback_metrics) == bits(again.callback_metrics)


class PicklableModule(lightning.pytorch.LightningModule):
    """At module level, so that it can be pickled."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)
        self.copies: list[Any] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = self.layer(batch["x"]).pow(2).mean()
        self.log("loss", loss, on_epoch=True)
        if batch_idx == 2:
            copies = [copy.deepcopy(self), pickle.loads(pickle.dumps(self))]
            self.copies = [*copies, copy.deepcopy(copies[0]), pickle.loads(pickle.dumps(copies[1]))]
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def test_copies_of_the_module_log_for_themselves(quiet: dict[str, Any]) -> None:
    module = PicklableModule()
    lightning.pytorch.Trainer(**quiet, max_epochs=1, callbacks=[FastLogging()]).fit(module, loader(TRAIN_SIZES, 1))
    assert len(module.copies) == 4
    for copied in module.copies:
        assert isinstance(copied.log, MethodType)
        assert copied.log.__self__ is copied
        callback = FastLogging()
        trainer = lightning.pytorch.Trainer(**quiet, max_epochs=1, callbacks=[callback])
        trainer.fit(copied, loader(TRAIN_SIZES, 1))
        assert callback.messages == ["FastLogging: self.log takes a short path."]
        assert "loss_epoch" in trainer.callback_metrics


def test_a_log_of_the_users_own(ns: ModuleType, quiet: dict[str, Any]) -> None:
    """An overridden ``log`` stays in place, and what it hands on is shown as ever."""
    case = CASES["arguments"]

    def own(base: Any) -> Any:
        class Own(base):
            def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
                super().log(f"own_{name}", value, *args, **kwargs)

        return Own

    shown = []
    for fast in (False, True):
        module, journal = make_module(ns, case), Journal()
        module.__class__ = own(type(module))
        trainer = make_trainer(ns, case, quiet, journal, fast)
        trainer.fit(module, loader(TRAIN_SIZES, 1), val_loaders(case))
        shown.append(journal.entries)
        if fast:
            assert "log method of its own" in trainer.callbacks[0].messages[0]
    assert shown[0] == shown[1]


@pytest.mark.parametrize("change", ["metrics", "metadata", "connector", "state", "log"])
def test_says_so_where_lightning_differs(
    change: str, ns: ModuleType, quiet: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A private name that is missing or takes other parameters: one line, and a fit like any other."""
    case = Case({"training_step": log_b})
    module = make_module(ns, case)
    trainer = ns.Trainer(**quiet, max_epochs=1, callbacks=[FastLogging()])
    results = type(trainer.fit_loop.epoch_loop._results)
    home = importlib.import_module(results.__module__)
    if change == "metrics":
        stock = results.metrics
        monkeypatch.setattr(results, "metrics", lambda self, during_step: stock(self, during_step))
    elif change == "metadata":
        monkeypatch.delattr(home._Metadata, "is_sum_reduction")
        case.hooks["training_step"] = lambda module, loss, step: None
    elif change == "connector":
        connector = type(trainer._logger_connector)
        stock = connector.should_reset_tensors
        monkeypatch.setattr(connector, "should_reset_tensors", lambda self, hook: stock(self, hook))
    elif change == "state":
        stock_init = home._ResultMetric.__init__

        def init(self: Any, metadata: Any, is_tensor: bool) -> None:
            stock_init(self, metadata, is_tensor)
            self.__dict__.pop("has_reset")

        monkeypatch.setattr(home._ResultMetric, "__init__", init)
        monkeypatch.setattr(home._ResultMetric, "has_reset", False, raising=False)
    else:
        log = ns.LightningModule.log
        monkeypatch.setattr(ns.LightningModule, "log", lambda self, key, value, **kw: log(self, key, value, **kw))
    trainer.fit(module, loader(TRAIN_SIZES, 1))
    (message,) = trainer.callbacks[0].messages
    assert message.startswith("FastLogging: does nothing: ")
    assert "log" not in vars(module)
    if change != "metadata":
        assert "b_epoch" in trainer.callback_metrics


def test_resume(ns: ModuleType, quiet: dict[str, Any], tmp_path: Any) -> None:
    """A resumed run shows what a stock run shows that was resumed from the same checkpoint."""
    case = Case({"training_step": log_kinds(**BOTH), "validation_step": log_b})
    first = ns.Trainer(**quiet, max_epochs=1, callbacks=[FastLogging()])
    first.fit(make_module(ns, case), loader(TRAIN_SIZES, 1), val_loaders(case))
    first.save_checkpoint(tmp_path / "c.ckpt")
    shown = []
    for fast in (False, True):
        journal = Journal()
        trainer = make_trainer(ns, case, quiet, journal, fast)
        module = make_module(ns, case)
        trainer.fit(module, loader(TRAIN_SIZES, 1), val_loaders(case), ckpt_path=str(tmp_path / "c.ckpt"))
        shown.append(journal.entries)
    assert shown[0] == shown[1]


def test_barebones_and_predict_are_left_alone(ns: ModuleType, quiet: dict[str, Any]) -> None:
    case = Case({"training_step": log_b})
    callback = FastLogging()
    trainer = ns.Trainer(barebones=True, accelerator="cpu", max_epochs=1, callbacks=[callback])
    with pytest.warns(UserWarning, match="barebones"):
        trainer.fit(make_module(ns, case), loader(TRAIN_SIZES, 1))
    trainer = ns.Trainer(**quiet, callbacks=[callback])
    module = make_module(ns, case)
    module.predict_step = lambda batch, batch_idx: module.layer(batch["x"])
    trainer.predict(module, loader(TRAIN_SIZES, 1))
    assert callback.messages == []


def test_compiled_module(quiet: dict[str, Any]) -> None:
    """Dynamo stops in front of ``log`` and takes the rest of the step; Lightning's own ``log`` breaks it (#21836)."""
    shown = []
    for compiled in (False, True):
        case = Case({"training_step": log_b})
        module = make_module(lightning.pytorch, case)
        callbacks: list[Any] = [FastLogging()] if compiled else []
        trainer = lightning.pytorch.Trainer(**quiet, max_epochs=2, callbacks=callbacks)
        given: Any = torch.compile(module, backend="eager") if compiled else module
        trainer.fit(given, loader(TRAIN_SIZES[:2], 1))
        shown.append(bits(trainer.callback_metrics))
    assert shown[0] == shown[1]


@pytest.mark.ddp
def test_synchronised_between_processes(tmp_path: Any, quiet: dict[str, Any]) -> None:
    """``sync_dist`` in two processes: every rank shows what it shows without us."""
    import lightning.pytorch as ns

    shown = []
    for fast in (False, True):
        target = tmp_path / f"{fast}"
        target.mkdir()

        class Write(ns.Callback):
            def on_train_end(self, trainer: Any, pl_module: Any, target: Any = target) -> None:
                torch.save(bits(trainer.callback_metrics), target / f"{trainer.global_rank}.pt")

        def hook(module: Any, loss: torch.Tensor, step: int) -> None:
            loss = loss * (1 + module.global_rank)
            module.log("synced", loss, sync_dist=True, **BOTH)
            module.log("synced_sum", loss, sync_dist=True, reduce_fx="sum", **BOTH)
            module.log("own", loss, **BOTH)
            module.log("rank", loss, rank_zero_only=True, **BOTH)
            module.mean_metric(loss.detach())
            module.log("metric", module.mean_metric, **BOTH)

        case = Case({"training_step": hook, "validation_step": hook})
        callbacks = [*([FastLogging()] if fast else []), Write()]
        settings = {**quiet, "devices": 2, "strategy": "ddp_fork", "max_epochs": 2, "callbacks": callbacks}
        ns.Trainer(**settings).fit(make_module(ns, case), loader(TRAIN_SIZES, 1), val_loaders(case))
        shown.append([torch.load(target / f"{rank}.pt", weights_only=True) for rank in range(2)])
    assert shown[0] == shown[1]
    assert shown[0][0] != shown[0][1]
