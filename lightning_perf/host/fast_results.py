"""Lightning's result collections at a lower price: the same numbers, bit for bit, without moving and tracing on each log.

The classes here are laid over the *instances* that one Trainer owns (``collection.__class__``) and taken off again. A
logged scalar on the CPU is accumulated in Python floats that are rounded to float32 after each operation, in the stock
order: a sum or product of two float32 numbers, computed in float64 and rounded once more, is the float32 result exactly.
The tensors that Lightning keeps (``value``, ``cumulated_batch_size``) are made when somebody reads them.

Source of the rounding argument: Figueroa, When is double rounding innocuous? (1995).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from ctypes import c_float
from functools import cache
from typing import Any

import torch
from lightning.fabric.utilities.apply_func import convert_tensors_to_scalars
from torch import Tensor
from torchmetrics import Metric

from lightning_perf.host.doors import Undo, require
from lightning_perf.host.namespaces import DoorClosed, namespace_of

#: Batch sizes up to here are exact in float32, so that a product with one is rounded once.
LARGEST_BATCH = 2**24

_ROW, _ROWS = "_lightning_perf_row", "_lightning_perf_rows"
_METRIC_STATE = {"value", "cumulated_batch_size", "is_tensor", "meta", "has_reset"}
_METRIC_STATE |= {"_forward_cache", "_computed", "_update_count"}
_METADATA = {"on_step", "on_epoch", "logger", "prog_bar", "enable_graph", "dataloader_idx", "reduce_fx", "sync"}
_METADATA |= {"is_mean_reduction", "is_sum_reduction"}


class Row:
    """What one logged name needs on the short path, beside the result metric it belongs to."""

    __slots__ = (
        "averages", "bar", "count", "dataloader_idx", "double", "extreme", "known", "logger", "metric", "name", "on_epoch",
        "on_step", "plain", "state", "step_name", "total",
    )  # fmt: skip

    def __init__(self, collection: Any, metric: Any) -> None:
        meta = metric.meta
        self.metric = metric
        self.state: dict[str, Any] = metric.__dict__
        self.plain: bool = metric.is_tensor and not meta.enable_graph
        self.on_step: bool = bool(meta.on_step)
        self.on_epoch: bool = bool(meta.on_epoch)
        self.averages: bool = meta.is_mean_reduction
        self.extreme: Callable[[Tensor, Tensor], Tensor] | None = (
            None if self.averages or meta.is_sum_reduction else meta.reduce_fx
        )
        self.logger: bool = bool(meta.logger)
        self.bar: bool = bool(meta.prog_bar)
        self.dataloader_idx: int | None = meta.dataloader_idx
        self.name: str
        self.step_name: str
        self.name, self.step_name = collection._forked_name(metric, True)
        #: Types of value that the stock method has accepted, and warned about, under this name.
        self.known: set[Any] = set()
        #: The running sum while it lives here and not in the metric's tensor; ``double`` is its precision.
        self.total: float | None = None
        self.double = False
        #: What is still to be added to ``cumulated_batch_size``.
        self.count = 0

    def takes(self, value: Tensor) -> bool:
        """Whether the state is where ``value`` is, so that nothing has to move."""
        if self.total is not None:
            return value.is_cpu
        return self.state["value"].device == value.device

    def record(self, value: Tensor, batch_size: int) -> None:
        """The stock update for ``value``: detached, 0-d, float32 or float64; ``batch_size`` weighs a mean."""
        state = self.state
        state["_computed"] = None
        state["_update_count"] += 1
        if self.on_step:
            state["_forward_cache"] = snapshot = value.clone()
            if not self.on_epoch:
                state["value"] = snapshot
        if self.on_epoch:
            if self.extreme is not None:
                state["value"] = self.extreme(state["value"], value.clone())
            elif value.is_cpu:
                self._add_on_host(value, batch_size)
            else:
                self._add_on_device(value, batch_size)
            if self.averages:
                self.count += batch_size
        state["has_reset"] = False

    def record_metric(self, value: Metric) -> bool:
        """The stock update for the torchmetrics metric of this row; False if it is another one, or has to move."""
        state = self.state
        if state["value"] is not value or not _at_home(value, value.device):
            return False
        state["_computed"] = None
        state["_update_count"] += 1
        state["_forward_cache"] = value._forward_cache
        state["has_reset"] = False
        return True

    def _add_on_host(self, value: Tensor, batch_size: int) -> None:
        total = self.total
        if total is None:
            held = self.state["value"]
            total, self.double = held.item(), held.dtype is torch.float64
        double, number = value.dtype is torch.float64, value.item()
        if self.averages:
            number *= batch_size
            if not double:
                number = c_float(number).value
        self.double |= double
        total += number
        self.total = total if self.double else c_float(total).value

    def _add_on_device(self, value: Tensor, batch_size: int) -> None:
        self.state["value"] = self.state["value"] + (value * batch_size if self.averages else value)

    def settle(self) -> None:
        """Write what lives here into the tensors of the metric."""
        if self.total is not None:
            dtype = torch.float64 if self.double else torch.float32
            self.state["value"] = torch.tensor(self.total, dtype=dtype, device="cpu")
            self.total = None
        if self.count:
            self.state["cumulated_batch_size"] = self.state["cumulated_batch_size"] + self.count
            self.count = 0


@cache
def _fast_metric(stock: Any) -> type:
    """Laid over a result metric: reading the state settles it first, and moving to where it already is costs nothing."""

    class FastMetric(stock):
        @property
        def value(self) -> Any:
            self._settle()
            return self.__dict__["value"]

        @value.setter
        def value(self, value: Any) -> None:
            self._settle()
            self.__dict__["value"] = value

        @property
        def cumulated_batch_size(self) -> Any:
            self._settle()
            return self.__dict__["cumulated_batch_size"]

        @cumulated_batch_size.setter
        def cumulated_batch_size(self, value: Any) -> None:
            self._settle()
            self.__dict__["cumulated_batch_size"] = value

        def _settle(self) -> None:
            self.__dict__[_ROW].settle()

        def to(self, *args: Any, **kwargs: Any) -> Any:
            self._settle()
            state = self.__dict__
            if len(args) == 1 and not kwargs and isinstance(args[0], torch.device) and _is_at(state, args[0]):
                return self
            return super().to(*args, **kwargs)

        def __getstate__(self) -> dict[str, Any]:
            self._settle()
            return {key: value for key, value in super().__getstate__().items() if key != _ROW}

        def __reduce_ex__(self, protocol: Any) -> Any:
            return stock.__new__, (stock,), self.__getstate__()

    return _named_like(stock, FastMetric)


@cache
def _fast_collection(stock: Any) -> type:
    """Laid over a result collection: knows which names change per step and under which keys they are reported."""

    class FastCollection(stock):
        def __setitem__(self, key: str, metric: Any) -> None:
            super().__setitem__(key, metric)
            self.__dict__[_ROWS][key] = _adopt(self, metric)

        def metrics(self, on_step: bool) -> Any:
            """The stock dictionaries; those of a step without asking every metric anew for its names."""
            if not on_step:
                return super().metrics(on_step)
            here, training = self.__dict__["dataloader_idx"], self.__dict__["training"]
            callback: dict[str, Tensor] = {}
            log: dict[str, Tensor] = {}
            bar: dict[str, float] = {}
            for row in self.__dict__[_ROWS].values():
                state = row.state
                if not row.on_step or state["has_reset"] or row.dataloader_idx != here:
                    continue
                value = state["_forward_cache"] if row.plain else self._get_cache(row.metric, True)
                if not isinstance(value, Tensor):
                    continue
                if row.logger:
                    log[row.step_name] = value
                if training:
                    callback[row.name] = value
                    callback[row.step_name] = value
                if row.bar:
                    bar[row.step_name] = value.item() if row.plain else convert_tensors_to_scalars(value)
            return {"callback": callback, "log": log, "pbar": bar}

        def __reduce_ex__(self, protocol: Any) -> Any:
            state = {key: value for key, value in self.__dict__.items() if key != _ROWS}
            return stock.__new__, (stock,), state, None, iter(self.items())

    return _named_like(stock, FastCollection)


def is_fast(collection: Any) -> bool:
    """Whether ``collection`` has been laid over."""
    return collection is not None and _ROWS in vars(collection)


def row_of(collection: Any, key: str) -> Row | None:
    """The row of the metric stored as ``key`` in a collection that is fast."""
    return collection.__dict__[_ROWS].get(key)


def speed_up_results(trainer: Any, undo: Undo) -> None:
    """Lay the fast classes over the result collections of ``trainer``; ``undo`` takes them off.

    Raises:
        DoorClosed: if this release of Lightning keeps its results in another way.
    """
    epoch_loop = require(require(trainer, "fit_loop"), "epoch_loop")
    loops = [
        epoch_loop,
        require(epoch_loop, "val_loop"),
        require(trainer, "validate_loop"),
        require(trainer, "test_loop"),
    ]
    collections = [require(loop, "_results") for loop in loops]
    _probe(trainer, collections[0])
    for collection in collections:
        stock = type(collection)
        collection.__class__ = _fast_collection(stock)
        rows = collection.__dict__[_ROWS] = {}
        for key, metric in collection.items():
            rows[key] = _adopt(collection, metric)
        undo.push(_put_back, collection, stock)


def _put_back(collection: Any, stock: type) -> None:
    for row in collection.__dict__.pop(_ROWS).values():
        row.settle()
        del row.state[_ROW]
        row.metric.__class__ = type(row.metric).__base__
    collection.__class__ = stock


def _adopt(collection: Any, metric: Any) -> Row:
    row = metric.__dict__[_ROW] = Row(collection, metric)
    metric.__class__ = _fast_metric(type(metric))
    return row


def _named_like(stock: type, fast: type) -> type:
    fast.__name__, fast.__qualname__, fast.__module__ = stock.__name__, stock.__qualname__, stock.__module__
    return fast


def _is_at(state: dict[str, Any], device: torch.device) -> bool:
    value = state.get("value")  # a metric is stored with its first update
    if not state["is_tensor"]:
        return value is not None and _at_home(value, device)
    tensors = (value, state.get("cumulated_batch_size"), state["_forward_cache"], state["_computed"])
    return all(tensor is None or tensor.device == device for tensor in tensors)


def _at_home(metric: Any, device: torch.device) -> bool:
    """Whether every state of a torchmetrics metric and of the metrics inside it is on ``device`` already."""
    if metric.compute_on_cpu or metric._parameters or metric._buffers or metric.device != device:
        return False
    for name in metric._defaults:
        state = getattr(metric, name)
        tensors = state[-1:] if isinstance(state, list) else [state]
        if any(isinstance(tensor, Tensor) and tensor.device != device for tensor in tensors):
            return False
    return all(isinstance(child, Metric) and _at_home(child, device) for child in metric._modules.values())


def _probe(trainer: Any, collection: Any) -> None:
    """Raise DoorClosed unless the names this file stands on are there."""
    require(collection, "metrics", parameters=("on_step",))
    require(collection, "_extract_batch_size", parameters=("value", "batch_size", "meta"))
    require(collection, "_get_cache", parameters=("result_metric", "on_step"))
    require(collection, "_forked_name", parameters=("result_metric", "on_step"))
    path = f"{namespace_of(trainer).__name__}.trainer.connectors.logger_connector.result"
    try:
        home = importlib.import_module(path)
    except ModuleNotFoundError:
        raise DoorClosed(
            f"this release of Lightning has no {path}. Use a supported release (see the README)."
        ) from None
    meta = require(home, "_Metadata")("probe", "probe")
    meta.sync = require(home, "_Sync")()
    metric = require(home, "_ResultMetric")(meta, True)
    require(metric, "update", parameters=("value", "batch_size"))
    missing = sorted(_METRIC_STATE - vars(metric).keys()) + sorted(
        name for name in _METADATA if not hasattr(meta, name)
    )
    if missing or not {"dataloader_idx", "training", "batch_size"} <= vars(collection).keys():
        raise DoorClosed(
            f"the results of this release of Lightning lack {', '.join(missing) or 'their usual attributes'}. "
            "Use a supported release (see the README)."
        )
