"""``self.log(..., sync_dist=True)`` with one all-reduce a step, and none of Lightning's barriers.

Lightning reduces every logged value by itself, a barrier and a blocking all-reduce each, also where nothing is logged.
Values logged inside a step are collected instead; when the step is over one all-reduce starts, which runs while backward
does, and whoever reads the metrics waits for it. Reading starts no collective before an epoch is over, so that a progress
bar on rank zero may; what a step logs is this process's own value until that step is over. Means of an epoch are reduced
together as well. Sums are made in float64: with two processes the results are Lightning's bit for bit, with more they are
rounded once instead of at every addition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_perf.host.doors import Undo, require
from lightning_perf.host.timing_door import exchanging

_SYNC = "_lightning_perf_sync"
_OPERATIONS = {"mean": "SUM", "avg": "SUM", "sum": "SUM", "max": "MAX", "min": "MIN"}


class _Job(NamedTuple):
    """A tensor of one element to be reduced in place, as ``strategy.reduce`` would."""

    tensor: Tensor
    operation: str

    def finish(self, total: Tensor, world_size: int) -> None:
        """Write the reduced value; the arithmetic after the sum is Lightning's."""
        value = total.to(self.tensor.dtype)
        if self.operation in ("mean", "avg"):
            value = value / world_size
        self.tensor.copy_(value.reshape(self.tensor.shape))


class _Flight(NamedTuple):
    """An all-reduce under way for several jobs."""

    work: Any
    totals: Tensor
    jobs: list[_Job]


class FusedSync:
    """Collects what a step logs with ``sync_dist=True`` and reduces it together.

    Args:
        device: where a tensor must be to be reduced.
        reduce: the strategy's own ``reduce``, for what is not a plain reduction over all processes.
    """

    def __init__(self, device: torch.device, reduce: Callable[..., Any]) -> None:
        self._device, self._reduce = device, reduce
        #: False: every value goes its way by itself, as Lightning sends it.
        self.fuses = True
        #: Makes a context manager that is open while a process waits for others.
        self.around: Callable[[], AbstractContextManager[Any]] = nullcontext
        self._waiting: list[_Job] = []
        self._flights: list[_Flight] = []
        self._in_step = False

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around a step of the module: collect in it, start the all-reduce after it."""
        self._in_step = True
        try:
            yield
            self._launch()
        finally:
            self._in_step = False
            self._waiting.clear()

    def later(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        """What Lightning calls for a value; inside a step the tensor returned gets its value at :meth:`settle`."""
        plain = isinstance(tensor, Tensor) and group is None and not tensor.requires_grad and reduce_op in _OPERATIONS
        if not (self.fuses and plain) or tensor.numel() != 1:
            return self._reduce(tensor, group=group, reduce_op=reduce_op)
        self._waiting.append(_Job(tensor, reduce_op))
        if not self._in_step:
            self.settle()
        return tensor

    def settle(self) -> None:
        """Give every collected tensor its reduced value."""
        self._launch()
        self.arrive()

    def arrive(self) -> None:
        """Wait for what is under way; what has not started yet keeps this process's value. Starts no collective."""
        flights, self._flights = self._flights, []
        for work, totals, jobs in flights:
            with self.around():
                work.wait()
            for job, total in zip(jobs, totals, strict=True):
                job.finish(total, dist.get_world_size())

    def forget(self) -> None:
        """Drop what an interrupted run left behind."""
        self._waiting.clear()
        self._flights.clear()

    def compute(self, results: Any) -> None:
        """Reduce everything that an epoch logged together, and leave each result where Lightning would cache it."""
        if not self.fuses:
            return
        metrics = [metric for _, metric in results.valid_items() if self._computes(metric)]
        values = []
        for metric in metrics:
            values.append(metric.value.clone())
            self._waiting.append(_Job(values[-1], metric.meta.sync.op))
            if metric.meta.is_mean_reduction:
                self._waiting.append(_Job(metric.cumulated_batch_size, metric.meta.sync.op))
        self.settle()
        for metric, value in zip(metrics, values, strict=True):
            metric._computed = value / metric.cumulated_batch_size if metric.meta.is_mean_reduction else value

    def _computes(self, metric: Any) -> bool:
        sync = metric.meta.sync
        if not (metric.is_tensor and metric.meta.on_epoch and sync.should) or sync.rank_zero_only:
            return False
        if sync.fn != self.later or sync.group is not None or sync.op not in _OPERATIONS or metric.meta.enable_graph:
            return False
        return metric._computed is None and metric.update_called

    def _launch(self) -> None:
        waiting, self._waiting = self._waiting, []
        for name in ("SUM", "MAX", "MIN"):
            jobs = [job for job in waiting if _OPERATIONS[job.operation] == name]
            if jobs:
                parts = [job.tensor.detach().to(self._device, torch.float64).reshape(1) for job in jobs]
                totals = torch.cat(parts)
                work = dist.all_reduce(totals, op=getattr(dist.ReduceOp, name), async_op=True)
                self._flights.append(_Flight(work, totals, jobs))


@cache
def _settling(stock: Any) -> type:
    """Laid over Lightning's logger connector: reading metrics first waits for what is under way."""

    class SettlingConnector(stock):
        @property
        def metrics(self) -> Any:
            sync: FusedSync = self.__dict__[_SYNC]
            sync.arrive()
            if self._first_loop_iter is None and self.trainer._results is not None:
                sync.compute(self.trainer._results)
            return super().metrics

    SettlingConnector.__name__, SettlingConnector.__qualname__ = stock.__name__, stock.__qualname__
    return SettlingConnector


def fuse_sync(trainer: Any, sync: FusedSync, undo: Undo) -> None:
    """Have everything that this Trainer logs with ``sync_dist=True`` reduced by ``sync``, until ``undo`` runs.

    Raises:
        DoorClosed: if this release of Lightning synchronises its results in another way.
    """
    epoch_loop = require(require(trainer, "fit_loop"), "epoch_loop")
    loops = [epoch_loop, *(require(*place) for place in (
        (epoch_loop, "val_loop"), (trainer, "validate_loop"), (trainer, "test_loop"),
    ))]  # fmt: skip
    collections = [require(loop, "_results") for loop in loops]
    for name in ("valid_items", "log"):
        require(collections[0], name)
    connector = require(trainer, "_logger_connector")
    require(connector, "_first_loop_iter")
    require(type(connector), "metrics")
    stock = type(connector)
    connector.__dict__[_SYNC] = sync
    connector.__class__ = _settling(stock)
    undo.push(_put_back, connector, stock)
    undo.push(sync.forget)
    sync.around = lambda: exchanging(trainer)
    undo.push(setattr, sync, "around", nullcontext)
    for collection in collections:
        log_through(collection, sync.later)
        undo.push(vars(collection).pop, "log", None)


def log_through(collection: Any, reduce: Callable[..., Any]) -> None:
    """Have ``reduce`` called for what is logged into ``collection``, in place of the strategy's own."""
    log = collection.log

    def log_later(*args: Any, **kwargs: Any) -> None:
        log(*args, **{**kwargs, "sync_dist_fn": reduce})

    vars(collection)["log"] = log_later


def _put_back(connector: Any, stock: type) -> None:
    connector.__dict__.pop(_SYNC, None)
    connector.__class__ = stock
