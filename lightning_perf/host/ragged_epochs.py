"""Epochs of unequal length: all processes end an epoch together, where Lightning's DDP would wait for ever."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist

from lightning_perf.host.doors import require


class RaggedEpochs:
    """Keeps processes with different numbers of training batches together; the shortest one ends the epoch.

    Loaders with a length are compared once an epoch. Where one has none, every batch asks whether it is somebody's last.
    """

    def __init__(self, trainer: Any, device: torch.device) -> None:
        self._fit_loop = require(trainer, "fit_loop")
        self._trainer, self._device = trainer, device
        self._progress = require(require(self._fit_loop, "epoch_loop"), "batch_progress")
        require(self._progress, "is_last_batch")
        require(self._fit_loop, "max_batches")
        self._unknown = False

    def start_epoch(self) -> tuple[int, int] | None:
        """Agree on the number of batches; shortest and longest if they differ."""
        mine = self._fit_loop.max_batches
        # The number of batches, and its negative: one all-reduce gives both ends.
        votes = torch.tensor([mine, -mine], dtype=torch.float64, device=self._device)
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        longest, shortest = float(votes[0]), -float(votes[1])
        self._unknown = math.isinf(longest)
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
        last = torch.tensor(float(self._progress.is_last_batch), device=self._device)
        dist.all_reduce(last, op=dist.ReduceOp.MAX)
        if last.item():
            self._progress.is_last_batch = True
