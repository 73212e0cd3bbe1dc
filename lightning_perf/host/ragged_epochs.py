"""Epochs of unequal length: all processes end an epoch together, where Lightning's DDP would wait for ever."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist

from lightning_perf.host.doors import require


class RaggedEpochs:
    """Keeps processes with different numbers of training batches together; the shortest one ends the epoch.

    Loaders with a length are compared when they are new: Lightning counts their batches no sooner again. Where one has
    none, every batch asks whether it is somebody's last.
    """

    def __init__(self, trainer: Any, device: torch.device) -> None:
        self._fit_loop = require(trainer, "fit_loop")
        self._trainer, self._device = trainer, device
        self._progress = require(require(self._fit_loop, "epoch_loop"), "batch_progress")
        require(self._progress, "is_last_batch")
        require(self._fit_loop, "max_batches")
        require(self._fit_loop, "_last_train_dl_reload_epoch")
        self._compared: float | None = None
        self._unknown = False
        self._last: bool | None = None

    def start_epoch(self) -> tuple[int, int] | None:
        """Agree on the number of batches of a new loader; shortest and longest if they differ."""
        if self._compared == self._fit_loop._last_train_dl_reload_epoch:
            return None
        self._compared = self._fit_loop._last_train_dl_reload_epoch
        mine = self._fit_loop.max_batches
        # The number of batches, and its negative: one all-reduce gives both ends, and what start_batch wants to know.
        longest, shortest, last = self._most([mine, -mine, float(self._progress.is_last_batch)])
        shortest = -shortest
        self._unknown = math.isinf(longest)
        self._last = bool(last)
        if self._unknown or longest == shortest:
            return None
        self._fit_loop.max_batches = int(shortest)
        if isinstance(self._trainer.val_check_batch, int):
            self._trainer.val_check_batch = min(self._trainer.val_check_batch, int(shortest))
        return int(shortest), int(longest)

    def start_batch(self) -> None:
        """End the epoch with this batch if it is the last one of any process."""
        if not self._unknown:
            return
        last, self._last = self._last, None
        if last is None:
            last = bool(self._most([float(self._progress.is_last_batch)])[0])
        if last:
            self._progress.is_last_batch = True

    def _most(self, votes: list[float]) -> list[float]:
        """The largest of each over all processes."""
        told = torch.tensor(votes, dtype=torch.float64, device=self._device)
        dist.all_reduce(told, op=dist.ReduceOp.MAX)
        return told.tolist()
