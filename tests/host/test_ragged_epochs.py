"""Epochs that end together, with the other process played by a patched all-reduce."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from lightning_perf.host.ragged_epochs import RaggedEpochs


def of_twelve(interval: float | None, every: float | None) -> Any:
    """As much of a Trainer as is looked at: 12 batches, in the midst of the tenth."""
    progress = SimpleNamespace(is_last_batch=False, current=SimpleNamespace(ready=10))
    loop = SimpleNamespace(
        epoch_loop=SimpleNamespace(batch_progress=progress, restarting=False),
        max_batches=12,
        restarting=False,
        _last_train_dl_reload_epoch=0,
        _combined_loader=object(),
        _data_fetcher=object(),
    )
    return SimpleNamespace(fit_loop=loop, val_check_interval=interval, val_check_batch=every)


@pytest.mark.parametrize(
    ("interval", "mine", "agreed"),
    [(0.5, 6, 5), (1.0, 12, 10), (0.01, 1, 1), (15, 15, 15), (4, 4, 4), (None, None, None)],
)
def test_the_shorter_process_sets_the_epoch(
    interval: float | None, mine: int | None, agreed: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other has 10: a part of an epoch is one of 10, a number of batches or seconds stays, the tenth is the last."""

    def with_ten(told: torch.Tensor, op: Any) -> None:
        torch.maximum(told, torch.tensor([10.0, -10.0, 0.0], dtype=told.dtype), out=told)

    monkeypatch.setattr(dist, "all_reduce", with_ten)
    trainer = of_twelve(interval, mine)
    epochs = RaggedEpochs(trainer, torch.device("cpu"))
    assert epochs.start_epoch() == (10, 12)
    assert (trainer.fit_loop.max_batches, trainer.val_check_batch) == (10, agreed)
    assert epochs.start_epoch() is None
    epochs.start_batch()
    assert trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
