"""Bytes that leave this host in training steps, by strategy, as the kernel counts them; started by ``test_wire.py``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as ns
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_perf as lp

COUNTER = Path("/sys/class/net/link0/statistics/tx_bytes")
FIRST, LAST, PERIOD = 2, 8, 3
STRATEGIES = ("ddp", "perf_ddp", "perf_ddp_bf16", "perf_ddp_int8", "perf_local_sgd")


class Square(ns.LightningModule):
    """A quarter of a million parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(512, 512)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Count(ns.Callback):
    """Reads the counter where all processes stand before the same batch."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx in (FIRST, LAST):
            dist.barrier()
            self.seen.append(int(COUNTER.read_text()))


def bytes_a_step(name: str) -> float:
    options = {"average_every": PERIOD, "warmup_steps": 0} if name == "perf_local_sgd" else {}
    count = Count()
    trainer = ns.Trainer(
        strategy="ddp" if name == "ddp" else lp.PerfDDP(preset=name, **options),
        callbacks=[count],
        max_epochs=1,
        accelerator="cpu",
        devices=1,
        num_nodes=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Square(), DataLoader(TensorDataset(torch.ones(2 * (LAST + 1), 512)), batch_size=1))
    return (count.seen[1] - count.seen[0]) / (LAST - FIRST)


def main(out: str) -> None:
    torch.set_num_threads(1)
    found = {name: bytes_a_step(name) for name in STRATEGIES}
    if dist.get_rank() == 0:
        Path(out).write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
