"""What a user may log, where and how: cases that are run with and without FastLogging, and the record of what they show."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torchmetrics import MaxMetric, MeanMetric, MetricCollection, SumMetric

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
