"""One process of one run of benchmarks/ddp_quality.py."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn

import lightning_perf as lp
from benchmarks.goals import quiet_trainer
from lightning_perf.host import seed_everything
from lightning_perf_recipes.language_model.data import TextData
from lightning_perf_recipes.language_model.networks import Decoder

BLOCK, BATCH, WARM_UP = 32, 8, 200


class Model(pl.LightningModule):
    """A small decoder; AdamW, its learning rate up over 200 steps and down in a line to zero at the end."""

    def __init__(self, steps: int, rate: float) -> None:
        super().__init__()
        self.steps, self.rate = steps, rate
        self.net = Decoder(256, width=64, layers=2, heads=2, block_size=BLOCK, dropout=0.0)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss; nothing is logged."""
        return self.loss(batch)

    def loss(self, batch: Any) -> Tensor:
        """Mean cross entropy of the bytes that follow."""
        tokens, following = batch
        return nn.functional.cross_entropy(self.net(tokens).flatten(0, 1), following.flatten())

    def configure_optimizers(self) -> Any:
        """AdamW and its schedule."""

        def share(step: int) -> float:
            return min((step + 1) / WARM_UP, max(1 - step / self.steps, 0.0))

        optimizer = torch.optim.AdamW(self.parameters(), lr=self.rate, weight_decay=0.1)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@torch.no_grad()
def held_out(module: Model, data: TextData) -> float:
    """Mean loss of every held-out byte."""
    module.eval()
    total, count = 0.0, 0
    for batch in data.val_dataloader():
        total += float(module.loss(batch)) * len(batch[0])
        count += len(batch[0])
    return total / count


def main() -> None:
    """Train; rank 0 writes the loss once all processes have found the same one."""
    variant, seed, steps, rate, out = sys.argv[1:]
    os.sched_setaffinity(0, {int(os.environ["RANK"]) % (os.cpu_count() or 1)})
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    seed_everything(int(seed))
    module, data = Model(int(steps), float(rate)), TextData(block_size=BLOCK, batch_size=BATCH)
    local = {"average_every": 8, "warmup_steps": 100, "local_rate": int(os.environ["WORLD_SIZE"]) ** 0.5}
    options = local if variant == "perf_local_sgd" else {}
    strategy = "ddp" if variant == "ddp" else lp.PerfDDP(preset=variant, **options)
    trainer = quiet_trainer(
        [],
        strategy=strategy,
        devices=2,
        max_epochs=-1,
        max_steps=int(steps),
        limit_val_batches=0,
        num_sanity_val_steps=0,
    )
    begin = time.perf_counter()
    trainer.fit(module, datamodule=data)
    seconds = time.perf_counter() - begin
    assert trainer.global_step == int(steps)
    mine = torch.tensor([held_out(module, data)], dtype=torch.float64)
    every = [torch.empty_like(mine) for _ in range(trainer.world_size)]
    dist.all_gather(every, mine)
    assert all(torch.equal(mine, other) for other in every), f"processes ended apart: {every}"
    if trainer.is_global_zero:
        Path(out).write_text(json.dumps({"loss": float(mine), "seconds": seconds}))
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # a thread of gloo that still lets go of a tensor aborts an interpreter that ends (pytorch#190489)


if __name__ == "__main__":
    main()
