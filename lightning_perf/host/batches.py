"""What a batch holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from lightning.pytorch import seed_everything as _seed_everything


def batch_size_of(batch: Any) -> int | None:
    """Number of samples in ``batch``, or ``None`` where it cannot be told.

    Graph batches say it themselves (``num_graphs``); otherwise the first dimension of the first tensor counts, in
    tensors, mappings, sequences and dataclasses, nested or not.
    """
    if isinstance(batch, torch.Tensor):
        return batch.size(0) if batch.ndim else 1
    graphs = getattr(batch, "num_graphs", None)
    if isinstance(graphs, int):
        return graphs
    children: Iterable[Any] = ()
    if isinstance(batch, Mapping):
        children = batch.values()
    elif isinstance(batch, list | tuple):
        children = batch
    elif dataclasses.is_dataclass(batch):
        children = (getattr(batch, field.name) for field in dataclasses.fields(batch))
    return next((size for child in children if (size := batch_size_of(child)) is not None), None)


def seed_everything(seed: int) -> None:
    """Lightning's seeding of torch, numpy and Python, without a line about it."""
    _seed_everything(seed, workers=True, verbose=False)
