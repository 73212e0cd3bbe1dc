"""Epochs of unequal length: all processes end an epoch together, where Lightning's DDP would wait for ever."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.distributed as dist

from lightning_perf.host.doors import Undo, require, stand_at
from lightning_perf.host.namespaces import is_a

_ENDS = "_lightning_perf_ends_anywhere"


class RaggedEpochs:
    """Keeps processes with different numbers of training batches together; the shortest one ends the epoch.

    Loaders with a length are compared when they are new: Lightning counts their batches no sooner again. Where one has
    none, every batch asks whether it is somebody's last; under ``limit_train_batches=k``, where Lightning does not look
    ahead, whether there was one everywhere.
    """

    def __init__(self, trainer: Any, device: torch.device) -> None:
        self._fit_loop = require(trainer, "fit_loop")
        self._trainer, self._device = trainer, device
        self._epoch_loop = require(self._fit_loop, "epoch_loop")
        self._progress = require(self._epoch_loop, "batch_progress")
        require(self._progress, "is_last_batch")
        for name in ("max_batches", "restarting", "_last_train_dl_reload_epoch", "_combined_loader", "_data_fetcher"):
            require(self._fit_loop, name)
        self._compared: float | None = None
        self._shortened: tuple[int, int] | None = None
        self._unknown = self._unsaid = False
        self._last: bool | None = None

    def stand(self, undo: Undo) -> None:
        """Look at a loader when Lightning has made it, until ``undo`` runs.

        Raises:
            DoorClosed: if this release of Lightning makes loaders elsewhere.
        """

        def around(guests: list[RaggedEpochs], original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            for guest in guests:
                guest._loader_is_there()
            return result

        undo.push(stand_at(self._fit_loop, "setup_data", self, around))

    def start_epoch(self) -> tuple[int, int] | None:
        """Agree on the number of batches of a new loader; shortest and longest if they differ."""
        if self._compared != self._fit_loop._last_train_dl_reload_epoch:
            self._compare()
        unsaid, self._unsaid = self._unsaid, False
        return self._shortened if unsaid else None

    def start_batch(self) -> None:
        """End the epoch with this batch if it is the last one of any process."""
        if self._shortened is not None and self._progress.current.ready >= self._fit_loop.max_batches:
            self._progress.is_last_batch = True  # a checkpoint written here says so, whichever process has more
        if not self._unknown:
            return
        last, self._last = self._last, None
        if last is None:
            last = bool(self._most([float(self._progress.is_last_batch)])[0])
        if last:
            self._progress.is_last_batch = True

    def _loader_is_there(self) -> None:
        loop = self._fit_loop
        if loop._combined_loader is None:
            return
        # A resumed fit asks how long the epoch is before its first batch: whether it had ended in the checkpoint.
        if (loop.restarting or self._epoch_loop.restarting) and self._compared != loop._last_train_dl_reload_epoch:
            self._compare()
            self._last = None
        fetcher = loop._data_fetcher  # lives as long as its loader: nothing to put back
        limited = isinstance(self._trainer.limit_train_batches, int) and is_a(fetcher, "_PrefetchDataFetcher")
        if limited and _ENDS not in vars(fetcher) and not all(map(_has_length, loop._combined_loader.flattened)):
            vars(fetcher)[_ENDS] = self._ends_anywhere
            fetcher.__class__ = _ending_together(type(fetcher))

    def _compare(self) -> None:
        self._compared = self._fit_loop._last_train_dl_reload_epoch
        mine = self._fit_loop.max_batches
        # The number of batches, and its negative: one all-reduce gives both ends, and what start_batch wants to know.
        longest, shortest, last = self._most([mine, -mine, float(self._progress.is_last_batch)])
        shortest = -shortest
        self._unknown = math.isinf(longest)
        self._last = bool(last)
        self._shortened, self._unsaid = None, False
        if self._unknown or longest == shortest:
            return
        self._shortened, self._unsaid = (int(shortest), int(longest)), True
        self._fit_loop.max_batches = int(shortest)
        # Lightning's own rule for a part of an epoch; a number of batches is the same everywhere.
        every = self._trainer.val_check_interval
        if isinstance(every, float) and isinstance(self._trainer.val_check_batch, int):
            self._trainer.val_check_batch = max(1, int(shortest * every))

    def _ends_anywhere(self, mine: bool) -> bool:
        """Whether some process has found no batch where all looked for one."""
        return bool(self._most([float(mine)])[0])

    def _most(self, votes: list[float]) -> list[float]:
        """The largest of each over all processes."""
        told = torch.tensor(votes, dtype=torch.float64, device=self._device)
        dist.all_reduce(told, op=dist.ReduceOp.MAX)
        return told.tolist()


def _has_length(loader: Any) -> bool:
    try:
        len(loader)
    except (TypeError, NotImplementedError):
        return False
    return True


@cache
def _ending_together(stock: Any) -> type:
    """Laid over Lightning's fetcher of batches: it has none where another process has none."""

    class EndingTogether(stock):
        def __next__(self) -> Any:
            found: list[Any] = []
            try:
                found.append(super().__next__())
            except StopIteration:
                self.done = True
            if self.__dict__[_ENDS](not found):
                self.done = True
                raise StopIteration
            return found[0]

    EndingTogether.__name__, EndingTogether.__qualname__ = stock.__name__, stock.__qualname__
    return EndingTogether
