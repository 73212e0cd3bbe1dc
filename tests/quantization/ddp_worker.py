"""Cases of ``test_ddp.py`` in one two-rank process group, one process a rank."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_perf as lp
from lightning_perf.quantization import preparation
from lightning_perf.quantization.layers import records
from tests.ranks import run_cases

ITEMS = 32  # rank 0 validates on the even ones, rank 1 on the odd ones


class Net(pl.LightningModule):
    """Two layers; every rank logs the error of its own items against the net in float."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.bad, self.last = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 1)
        with torch.no_grad():
            self.first.weight[0] *= 1e4
            self.bad.weight[:, 0] = 0
            for layer in (self.first, self.bad, self.last):
                layer.bias.zero_()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        (x,) = batch
        out = self.last(self.bad(self.first(x)))
        weights = [layer.weight.detach() for layer in (self.first, self.bad, self.last)]
        wanted = (x @ weights[0].T + self.first.bias) @ weights[1].T + self.bad.bias
        self.log("val_loss", (out - (wanted @ weights[2].T + self.last.bias)).square().mean().sqrt())


def trainer() -> Any:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return pl.Trainer(accelerator="cpu", devices=2, strategy="ddp", enable_model_summary=False, **quiet)


def items() -> Tensor:
    """Odd items are three times as large as even ones."""
    x = torch.randn(ITEMS, 4, generator=torch.Generator().manual_seed(1))
    x[1::2] *= 3
    return x


def loader(x: Tensor) -> DataLoader[Any]:
    return DataLoader(TensorDataset(x), 4)


def gathered(mine: Tensor) -> list[Tensor]:
    found = [torch.empty_like(mine) for _ in range(2)]
    dist.all_gather(found, mine)
    return found


def calibrated() -> dict[str, Any]:
    """Ranges on both ranks, and by how much the first one was narrowed at either end."""
    module, x = Net(), items()
    lp.quantize(module, loader(x), trainer=trainer())
    shared = preparation(module)
    assert shared is not None
    low, high = (gathered(ends) for ends in (shared.ranges.low, shared.ranges.high))
    narrowed = [low[0][0].item() / x.min().item(), high[0][0].item() / x.max().item()]
    return {"equal": torch.equal(*low) and torch.equal(*high), "narrowed": narrowed}


def within_a_budget() -> dict[str, Any]:
    """Even items are zero, so that rank 0 alone would lose next to nothing with all layers quantized."""
    module, x = Net(), items()
    x[0::2] = 0
    lp.quantize(module, loader(x), trainer=trainer(), max_drop=0.02)
    active = torch.tensor([float(layer.active) for _, _, layer in records(module)])
    return {"equal": torch.equal(*gathered(active)), "active": active.tolist()}


def broken_on_one_rank() -> dict[str, Any]:
    """A NaN that only rank 1 sees is an error on both, so that none waits for the other."""
    module, x = Net(), items()
    x[1] = float("nan")
    try:
        lp.quantize(module, loader(x), trainer=trainer())
    except ValueError as error:
        told = float("the input of first" in str(error))
    else:
        told = 0.0
    return {"told": [bool(one.item()) for one in gathered(torch.tensor([told]))]}


def main(out: str) -> None:
    for name in ("lightning.pytorch", "lightning_perf"):
        logging.getLogger(name).setLevel(logging.WARNING)
    run_cases({case.__name__: case for case in (calibrated, within_a_budget, broken_on_one_rank)}, Path(out))


if __name__ == "__main__":
    main(sys.argv[1])
