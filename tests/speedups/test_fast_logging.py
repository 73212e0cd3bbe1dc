"""FastLogging reports what Lightning reports, bit for bit, and leaves nothing behind."""

from __future__ import annotations

import copy
import pickle
import random
import struct
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import MethodType, ModuleType
from typing import Any

import lightning.pytorch
import pytest
import torch
from lightning.pytorch.trainer.connectors.logger_connector import result as stock_results
from torchmetrics import MaxMetric, MeanMetric, MetricCollection, SumMetric

from lightning_perf.host import Undo
from lightning_perf.host.fast_log import FastLog, speed_up_log
from lightning_perf.host.fast_results import Row
from lightning_perf.speedups.fast_logging import FastLogging

Hook = Callable[..., Any]
BOTH = {"on_step": True, "on_epoch": True, "prog_bar": True}
TRAIN_SIZES, VAL_SIZES = (4, 4, 3, 5, 1), (2, 4, 3)


@dataclass(frozen=True)
class Case:
    """Which hooks log what, and the Trainer's arguments; ``loaders`` is the number of validation loaders."""

    hooks: dict[str, Hook]
    trainer: dict[str, Any] = field(default_factory=dict)
    loaders: int = 1
    manual: bool = False


def values(loss: torch.Tensor, step: int) -> dict[str, Any]:
    """Every kind of value that a user may log."""
    plain = loss.detach() * 1.1
    return {
        "graph": loss,
        "detached": plain,
        "matrix": plain.reshape(1, 1),
        "vector": torch.stack([plain, plain])[1:],
        "half": plain.half(),
        "bfloat": plain.bfloat16(),
        "double": plain.double() / 3,
        "long": torch.tensor(step + 2),
        "bool": torch.tensor(step % 2 == 0),
        "float_number": float(plain) / 7,
        "int_number": 2**24 + 1 + step,
        "bool_number": step % 2 == 1,
        "nan": plain * (float("nan") if step % 5 == 3 else 1.0),
        "inf": plain * (float("inf") if step % 5 == 2 else 1.0),
        "negative_zero": plain * -0.0,
        "huge": plain.new_tensor(1e38),
        "tiny": plain.new_tensor(1e-42),
    }


def log_kinds(**arguments: Any) -> Hook:
    def hook(module: Any, loss: torch.Tensor, step: int) -> None:
        for name, value in values(loss, step).items():
            module.log(name, value, **arguments)

    return hook


def log_reductions(module: Any, loss: torch.Tensor, step: int) -> None:
    reductions = ("mean", "AVG", "sum", "min", "max", torch.mean, torch.sum, torch.max, torch.min, max, min, sum)
    for index, reduce_fx in enumerate(reductions):
        module.log(f"on_epoch_{index}", loss * (index - 5), reduce_fx=reduce_fx, on_step=False, on_epoch=True)
        value = loss * float("nan") if step % 5 == 4 else -loss.double() if step % 5 == 2 else loss
        module.log(f"both_{index}", value, reduce_fx=reduce_fx, on_step=True, on_epoch=True, prog_bar=True)


def log_sizes(module: Any, loss: torch.Tensor, step: int) -> None:
    module.log("fixed", loss, on_epoch=True, batch_size=7)
    module.log("changing", loss, on_epoch=True, batch_size=step + 1)
    module.log("sometimes", loss, on_epoch=True, batch_size=3 if step % 2 else None)
    module.log("float", loss, on_epoch=True, batch_size=2.5)  # not an integer, yet Lightning takes it
    module.log("vast", loss, on_epoch=True, batch_size=2**24 + 1)
    module.log("nothing", loss, on_epoch=True, batch_size=0)


def log_changing_types(module: Any, loss: torch.Tensor, step: int) -> None:
    kinds = [loss, loss.double(), torch.tensor(step), loss.half(), 0.1 * step, step]
    module.log("type", kinds[step % 6], on_step=True, on_epoch=True)
    module.log("type_sum", kinds[(step + 1) % 6], on_step=True, on_epoch=True, reduce_fx="sum")


def log_arguments(module: Any, loss: torch.Tensor, step: int) -> None:
    module.log("positional", loss, True, False, True, True, "mean")
    module.log("keywords", value=loss, prog_bar=1, on_step=True)
    module.log("graph", loss, enable_graph=True, on_epoch=True)
    module.log("alone", loss, sync_dist=True, on_epoch=True)
    module.log("rank", loss, rank_zero_only=True, on_epoch=True)
    module.log("unlogged", loss, logger=False, on_epoch=True)
    module.log("twice", loss, on_epoch=True)
    module.log("twice", loss * 3, on_epoch=True)
    module.log_dict({"first": loss, "second": loss * 2}, on_step=True, on_epoch=True, prog_bar=True)
    if step % 2:
        module.log("now_and_then", loss, on_step=True, on_epoch=True, prog_bar=True)


def log_metrics(module: Any, loss: torch.Tensor, step: int) -> None:
    value = loss.detach()
    module.mean_metric(value)
    module.log("mean", module.mean_metric, on_step=True, on_epoch=True, prog_bar=True)
    module.epoch_metric.update(value)
    module.log("epoch", module.epoch_metric, on_step=False, on_epoch=True)
    module.composed(value)
    module.log("composed", module.composed, on_step=False, on_epoch=True, metric_attribute="composed")
    module.collection(value)
    module.log_dict(module.collection, on_step=True, on_epoch=True)
    module.log("scalar", value, on_step=True, on_epoch=True)


def read_inside(module: Any, loss: torch.Tensor, step: int) -> None:
    trainer = module.trainer
    module.log("a", loss, on_step=True, on_epoch=True, prog_bar=True)
    module.seen.append(bits(trainer.callback_metrics))
    module.log("b", loss * 2, on_step=True, on_epoch=True)
    module.seen.append([bits(trainer.logged_metrics), bits(trainer.progress_bar_metrics)])
    trainer.callback_metrics["b"].mul_(3)  # in place, which the running mean must not see


def log_b(module: Any, loss: torch.Tensor, step: int) -> None:
    module.log("b", loss, on_epoch=True, prog_bar=True)


def log_then_change(module: Any, loss: torch.Tensor, step: int) -> None:
    module.running.add_(loss.detach())
    module.log("running", module.running, **BOTH)
    module.log("running_max", module.running, on_step=False, on_epoch=True, reduce_fx=max)
    module.running.mul_(1.5)


def log_around_a_step(module: Any, loss: torch.Tensor, step: int) -> None:
    """In an epoch's first batch, Lightning forgets what this hook logged before another hook logged."""
    module.log("a", loss, **BOTH)
    module.optimizers().step()
    module.log("a", loss * 2, **BOTH)


def two_loaders(module: Any, loss: torch.Tensor, step: int, dataloader_idx: int = 0) -> None:
    module.log("with_index", loss)
    module.log("both", loss, on_step=True, on_epoch=True, prog_bar=True)
    module.log(f"own_{dataloader_idx}", loss, add_dataloader_idx=False)


def epoch_end(name: str) -> Hook:
    return lambda module, loss, step: module.log(name, torch.tensor(float(module.current_epoch)), prog_bar=True)


CASES = {
    "kinds_default": Case({"training_step": log_kinds(), "validation_step": log_kinds()}),
    "kinds_both": Case({"training_step": log_kinds(**BOTH), "validation_step": log_b}),
    "kinds_epoch": Case({"training_step": log_kinds(on_step=False, on_epoch=True)}),
    "kinds_sum": Case({"training_step": log_kinds(reduce_fx="sum", **BOTH)}),
    "reductions": Case({"training_step": log_reductions}),
    "batch_sizes": Case({"training_step": log_sizes, "validation_step": log_sizes}),
    "changing_types": Case({"training_step": log_changing_types, "validation_step": log_changing_types}),
    "arguments": Case({"training_step": log_arguments, "validation_step": log_arguments}),
    # Inference tensors that validate() leaves in a metric's state break its next update in fit, with and without us.
    "torchmetrics": Case({"training_step": log_metrics, "validation_step": log_metrics}, {"inference_mode": False}),
    "read_inside": Case({"training_step": read_inside, "validation_step": log_b}),
    "changed_in_place": Case({"training_step": log_then_change, "validation_step": log_then_change}),
    "around_a_step": Case({"training_step": log_around_a_step, "on_before_optimizer_step": log_b}, manual=True),
    "two_loaders": Case({"validation_step": two_loaders, "training_step": log_b}, loaders=2),
    "hooks": Case(
        {
            "on_train_batch_start": log_b,
            "training_step": log_b,
            "on_before_optimizer_step": log_kinds(**BOTH),
            "on_train_batch_end": log_b,
            "on_train_epoch_start": epoch_end("start"),
            "on_train_epoch_end": epoch_end("end"),
            "on_validation_batch_end": log_b,
            "on_validation_epoch_end": epoch_end("val_end"),
            "callback_on_train_batch_end": log_sizes,
            "callback_on_train_epoch_end": epoch_end("callback_end"),
        }
    ),
    "manual": Case({"training_step": log_kinds(**BOTH)}, manual=True),
    "accumulate": Case({"training_step": log_b, "validation_step": log_b}, {"accumulate_grad_batches": 2}),
    "validate_within": Case({"training_step": log_b, "validation_step": log_b}, {"val_check_interval": 2}),
    "double": Case({"training_step": log_kinds(**BOTH)}, {"precision": "64-true"}),
    "bfloat_mixed": Case({"training_step": log_kinds(**BOTH)}, {"precision": "bf16-mixed"}),
    "bfloat_true": Case({"training_step": log_kinds(**BOTH)}, {"precision": "bf16-true"}),
    "no_logger": Case({"training_step": log_kinds(logger=True)}, {"logger": False}),
}


def bits(tree: Any) -> Any:
    """A nested record that is equal only if keys, their order, types, shapes and bits are."""
    if isinstance(tree, dict):
        return [(key, bits(value)) for key, value in tree.items()]
    if isinstance(tree, torch.Tensor):
        content = "nan" if tree.isnan().any() else tree.detach().cpu().numpy().tobytes()
        return (str(tree.dtype), tree.device.type, tuple(tree.shape), tree.requires_grad, content)
    if isinstance(tree, float):
        return "nan" if tree != tree else struct.pack("d", tree)
    return (type(tree).__name__, tree)


class Journal:
    """Everything that a run shows: what a callback reads, what a logger receives, what the module saw."""

    def __init__(self) -> None:
        self.entries: list[Any] = []

    def read(self, where: str, trainer: Any, dense: bool = True) -> None:
        # The first epoch is read after every batch, the second at its end alone, the third now and then.
        if dense and trainer.current_epoch % 3 and (trainer.current_epoch % 3 == 1 or len(self.entries) % 3):
            self.entries.append(where)
            return
        shown = (trainer.callback_metrics, trainer.logged_metrics, trainer.progress_bar_metrics)
        self.entries.append((where, trainer._logger_connector._current_fx, *map(bits, shown)))


def recorder(ns: ModuleType, journal: Journal, hooks: dict[str, Hook]) -> Any:
    """A callback that reads the metrics, after it has logged some of its own where the case says so."""

    def reading(hook: str, dense: bool) -> Hook:
        def method(self: Any, trainer: Any, pl_module: Any, *args: Any) -> None:
            if f"callback_{hook}" in hooks:
                hooks[f"callback_{hook}"](pl_module, pl_module.last_loss, pl_module.step)
            journal.read(hook, trainer, dense)

        return method

    dense = dict.fromkeys(("on_train_batch_end", "on_validation_batch_end", "on_test_batch_end"), True)
    ends = dict.fromkeys(("on_train_epoch_end", "on_validation_epoch_end", "on_validation_end", "on_train_end"), False)
    methods = {hook: reading(hook, often) for hook, often in {**dense, **ends}.items()}
    return type("Recorder", (ns.Callback,), methods)()


def recording_logger(ns: ModuleType, journal: Journal) -> Any:
    class RecordingLogger(ns.loggers.logger.Logger):
        name = version = "recorded"

        def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
            """Nothing of interest."""

        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            journal.entries.append(("logger", step, bits(metrics)))

    return RecordingLogger()


def make_module(ns: ModuleType, case: Case) -> Any:
    class Module(ns.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(3)
            self.layer = torch.nn.Linear(3, 1)
            self.automatic_optimization = not case.manual
            self.mean_metric, self.epoch_metric = MeanMetric(), SumMetric()
            self.composed = MeanMetric() + MaxMetric()
            self.collection = MetricCollection({"max": MaxMetric(), "sum": SumMetric()}, prefix="c_")
            self.running = torch.zeros(())
            self.seen: list[Any] = []
            self.step = 0
            self.last_loss = torch.zeros(())

        def compute(self, batch: Any) -> torch.Tensor:
            self.step += 1
            return self.layer(batch["x"]).pow(2).mean()

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            loss = self.compute(batch)
            self.last_loss = loss.detach()
            if case.manual:
                optimizer = self.optimizers()
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
            if "training_step" in case.hooks:
                case.hooks["training_step"](self, loss, self.step)
            return loss

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            loss, extra = self.compute(batch), (dataloader_idx,) if case.loaders > 1 else ()
            if "validation_step" in case.hooks:
                case.hooks["validation_step"](self, loss, self.step, *extra)

        test_step = validation_step

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.05)

    def logging(hook: Hook) -> Hook:
        return lambda self, *args: hook(self, self.last_loss, self.step)

    for name, hook in case.hooks.items():
        if name.startswith("on_"):
            setattr(Module, name, logging(hook))
    return Module()


def loader(sizes: tuple[int, ...], seed: int) -> Any:
    """Batches of different sizes."""
    generator = torch.Generator().manual_seed(seed)
    batches: Any = [{"x": torch.randn(size, 3, generator=generator)} for size in sizes]
    return torch.utils.data.DataLoader(batches, batch_size=None)


def val_loaders(case: Case) -> Any:
    return loader(VAL_SIZES, 2) if case.loaders == 1 else [loader(VAL_SIZES, 2 + n) for n in range(case.loaders)]


def make_trainer(ns: ModuleType, case: Case, quiet: dict[str, Any], journal: Journal, fast: bool) -> Any:
    settings: dict[str, Any] = {"max_epochs": 3, "log_every_n_steps": 2, "num_sanity_val_steps": 1}
    settings = {**quiet, **settings, "logger": recording_logger(ns, journal), **case.trainer}
    callbacks = [*([FastLogging()] if fast else []), recorder(ns, journal, case.hooks)]
    return ns.Trainer(**settings, callbacks=callbacks)


def run(ns: ModuleType, case: Case, quiet: dict[str, Any], fast: bool) -> Any:
    """Validate, fit and test; returns all that was shown."""
    journal, module = Journal(), make_module(ns, case)
    trainer = make_trainer(ns, case, quiet, journal, fast)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shown = [trainer.validate(module, val_loaders(case), verbose=False)]
        trainer.fit(module, loader(TRAIN_SIZES, 1), val_loaders(case))
        shown += [trainer.test(module, val_loaders(case), verbose=False)]
    if fast:
        assert trainer.callbacks[0].messages == ["FastLogging: self.log takes a short path."] * 3
    return journal.entries, module.seen, bits({str(index): each for index, each in enumerate(shown[0] + shown[1])})


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
        with pytest.raises(RuntimeError, match="planted"):
            trainer.fit(module, loader(TRAIN_SIZES, 1), val_loaders(case))
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
    home = __import__(results.__module__, fromlist=["_Metadata"])
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
