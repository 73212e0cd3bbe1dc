"""What a batch holds: Lightning's own answer to "how many samples", without its warnings and exceptions."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.data import extract_batch_size


def batch_size_of(batch: Any) -> int | None:
    """Number of samples in ``batch``, or ``None`` where it cannot be told.

    Graph batches say it themselves (``num_graphs``); for the rest the first tensor's first dimension counts.
    """
    graphs = getattr(batch, "num_graphs", None)
    if isinstance(graphs, int):
        return graphs
    if isinstance(batch, torch.Tensor):
        return batch.size(0) if batch.ndim else 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return extract_batch_size(batch)
    except (MisconfigurationException, RecursionError):
        return None


def seed_everything(seed: int) -> None:
    """Lightning's seeding of torch, numpy and Python, without a line about it."""
    from lightning.pytorch import seed_everything as seed_all

    seed_all(seed, workers=True, verbose=False)
