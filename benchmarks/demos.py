"""lossless() on the transformer and the LSTM of lightning.pytorch.demos, where there is little to gain: never a loss.

    python -m benchmarks.demos

The modules are Lightning's own, unedited; their data would be downloaded, so seeded token sequences stand in for it.
Goal: the lower bound of the interval >= 0.98.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.demos.lstm import LightningLSTM, SequenceSampler
from lightning.pytorch.demos.transformer import LightningTransformer
from torch.utils.data import DataLoader, TensorDataset

import lightning_perf as lp
from benchmarks.goals import Goal, publish, quiet_trainer

PAIRS = 40
STEPS = 40
VOCABULARY = 1_000
BLOCK = 35


def tokens(samples: int) -> TensorDataset:
    """(input, target) blocks of random tokens, the target shifted by one."""
    stream = torch.randint(0, VOCABULARY, (samples * BLOCK + 1,), generator=torch.Generator().manual_seed(0))
    return TensorDataset(stream[:-1].view(samples, BLOCK), stream[1:].view(samples, BLOCK))


def transformer() -> tuple[pl.LightningModule, DataLoader]:
    """The demo's transformer on batches of 4."""
    return LightningTransformer(VOCABULARY), DataLoader(tokens(4 * STEPS), batch_size=4)


def lstm() -> tuple[pl.LightningModule, DataLoader]:
    """The demo's LSTM with its own sampler, which carries the hidden state from batch to batch."""
    data = tokens(4 * STEPS)
    return LightningLSTM(VOCABULARY), DataLoader(data, batch_sampler=SequenceSampler(data, batch_size=4))


def variant(make: Callable[[], tuple[Any, Any]], callbacks: list[Any]) -> tuple[Any, ...]:
    """One run's Trainer, module and loader; the demo's download is left out."""
    module, loader = make()
    module.prepare_data = lambda: None
    return quiet_trainer(callbacks), module, loader


def main() -> None:
    """Compare and publish both."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for make in (transformer, lstm):
        report = lp.compare(
            {
                "plain": lambda make=make: variant(make, []),
                "lossless()": lambda make=make: variant(make, lp.lossless()),
            },
            pairs=PAIRS,
            title=f"lightning.pytorch.demos, {make.__name__}",
        )
        publish(report, f"demo_{make.__name__}", [Goal("samples_per_second", "lossless()", 0.98, bound="low")])


if __name__ == "__main__":
    main()
