"""ChannelPruning on two ranks, in one process group: started once by ``test_channels_ddp.py``, one process a rank."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as ns
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

import lightning_perf as lp
from lightning_perf.profiling.flops import FlopCounter
from lightning_perf.pruning import callback_measure
from lightning_perf.pruning.callback_latency import Latency
from lightning_perf.pruning.channels import Channels, meet
from lightning_perf.pruning.cut import Cut
from tests.contract.modules import make
from tests.pruning.test_regularize import penalty
from tests.ranks import run_cases

LR, MOMENTUM, STRENGTH, TARGET, STEPS = 0.05, 0.9, 0.03, 0.6, 4


def module() -> Any:
    """Convolutions with a batch norm, which each rank takes over its own batch; no dropout."""
    made = make("plain", ns)
    made.net[3].p = 0.0
    made.configure_optimizers = lambda: torch.optim.SGD(made.parameters(), lr=LR, momentum=MOMENTUM)
    return made


def batches(rank: int) -> list[tuple[Tensor, Tensor]]:
    """What one rank sees in every epoch: other images than the other rank, and brighter."""
    generator = torch.Generator().manual_seed(rank)
    x = (1 + rank) * torch.randn(4 * STEPS, 1, 8, 8, generator=generator)
    return list(zip(x.split(4), (x.mean((1, 2, 3)) > 0).long().split(4), strict=True))


class Wrappers(ns.Callback):
    """The DDP wrapper of every epoch, and whether it wraps the module."""

    def __init__(self) -> None:
        self.seen: list[DistributedDataParallel] = []
        self.whole: list[bool] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not batch_idx:
            wrapper = trainer.strategy.model
            assert isinstance(wrapper, DistributedDataParallel)
            self.seen.append(wrapper)
            self.whole.append(wrapper.module is pl_module)


def fit(pruning: lp.ChannelPruning, folder: Path, *callbacks: Any) -> Any:
    made = module()
    x, y = (torch.cat(parts) for parts in zip(*batches(int(os.environ["RANK"])), strict=True))
    trainer = ns.Trainer(
        max_epochs=2,
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[pruning, *callbacks],
    )
    trainer.fit(made, DataLoader(TensorDataset(x, y), batch_size=4))
    return made


def by_hand() -> Any:
    """The same run in one process, from the formulas: mean of both ranks' gradients, the penalty's by autograd, a cut."""
    made = module()
    net, seen = made.net, [batches(0), batches(1)]
    optimizer = torch.optim.SGD(net.parameters(), lr=LR, momentum=MOMENTUM)
    for epoch in range(2):
        for step in range(STEPS):
            if epoch == 1 and step == 0:
                cut_by(net, *seen[0][0], optimizer)
            optimizer.zero_grad()
            for rank in (0, 1):
                x, y = seen[rank][step]
                (nn.functional.cross_entropy(net(x), y) / 2).backward()
            if epoch == 0:
                (STRENGTH * penalty(net)).backward()
            optimizer.step()
    return made


def cut_by(net: nn.Module, x: Tensor, y: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Cut to the target on one batch."""
    channels = Channels(net, lambda one: nn.functional.cross_entropy(one(x), y), round_to=2).find()

    def macs(cut: Cut) -> float:
        clone = channels.duplicate(net).eval()
        cut.apply(clone)
        with torch.no_grad(), FlopCounter() as counter:
            clone(x)
        return counter.count.forward

    whole = macs(Cut())
    meet(channels, TARGET, lambda cut: macs(cut) / whole)[0].apply(net, [optimizer])


def ranks_are_equal(made: Any) -> bool:
    mine = torch.cat([value.detach().flatten() for value in made.parameters()])
    sizes: list[Any] = [None, None]
    dist.all_gather_object(sizes, len(mine))
    if sizes[0] != sizes[1]:
        return False
    gathered = [torch.empty_like(mine) for _ in range(2)]
    dist.all_gather(gathered, mine)
    return torch.equal(*gathered)


def check_regularized(folder: Path) -> dict[str, Any]:
    wrappers = Wrappers()
    pruning = lp.ChannelPruning(TARGET, round_to=2, regularize=STRENGTH)
    made, expected = fit(pruning, folder, wrappers), by_hand()
    pairs = list(zip(made.parameters(), expected.parameters(), strict=True))
    same_shapes = all(one.shape == other.shape for one, other in pairs)
    return {
        "equal_ranks": ranks_are_equal(made),
        "wrapped_again": wrappers.seen[0] is not wrappers.seen[1] and wrappers.whole == [True, True],
        "smaller": sum(p.numel() for p in made.parameters()) < sum(p.numel() for p in module().parameters()),
        "same_shapes": same_shapes,
        "difference": max(float((one - other).detach().abs().max()) for one, other in pairs) if same_shapes else None,
    }


def check_latency(folder: Path) -> dict[str, Any]:
    """A clock by the number of weights, which only rank zero may read."""
    made_by: list[int] = []
    now = [0.0]

    def stopwatch(whole: Any, arguments: Any, eager: Any) -> Latency:
        made_by.append(dist.get_rank())

        def call(net: Any) -> None:
            now[0] += sum(p.numel() for p in net.parameters())
            eager(net)

        return Latency(whole, arguments, call, builders={}, clock=lambda: now[0])

    callback_measure.Latency = stopwatch  # type: ignore[assignment, misc]
    made = fit(lp.ChannelPruning(0.5, measure="latency", round_to=2), folder)
    whole = sum(p.numel() for p in module().parameters())
    errors: list[Any] = [None, None]
    try:
        fit(lp.ChannelPruning(0.01, measure="latency", round_to=2), folder)
    except ValueError as error:
        dist.all_gather_object(errors, str(error))
    everybody: list[Any] = [None, None]
    dist.all_gather_object(everybody, made_by)
    return {
        "equal_ranks": ranks_are_equal(made),
        "share": sum(p.numel() for p in made.parameters()) / whole,
        "measured_by": everybody,
        "errors": errors,
    }


def main(out: str) -> None:
    torch.set_num_threads(1)
    folder = Path(out).parent
    run_cases({"regularized": lambda: check_regularized(folder), "latency": lambda: check_latency(folder)}, Path(out))


if __name__ == "__main__":
    main(sys.argv[1])
