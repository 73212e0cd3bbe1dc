"""Momentum of two processes, averaged; started by ``test_momentum.py``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import lightning.pytorch as ns
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, DistributedSampler

import lightning_perf as lp
from lightning_perf.strategies.compression import padded
from lightning_perf.strategies.momentum import Momenta, from_bytes, to_bytes
from tests.ranks import run_cases
from tests.strategies.modules import rows
from tests.strategies.worker import flat, trainer_of

CPU = torch.device("cpu")
STEPS, EVERY = 6, 2


def _gathered(tensor: torch.Tensor) -> list[torch.Tensor]:
    found = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(found, tensor.contiguous())
    return found


def check_adam() -> dict[str, Any]:
    """Beside the mean of what was there: how far away in units of what rounding may do, and what else has changed."""
    rank, generator = dist.get_rank(), torch.Generator().manual_seed(dist.get_rank())
    large, small = torch.nn.Parameter(torch.zeros(30, 20)), torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.AdamW([large, small])
    for parameter in [large] if rank else [large, small]:  # one process has had no gradient of the small one
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()
    stepped = [p for p in (large, small) if optimizer.state.get(p)]
    before = {p: torch.zeros_like(p).detach() for p in (large, small)}
    before |= {p: optimizer.state[p]["exp_avg"].clone() for p in stepped}
    for p in stepped:
        optimizer.state[p]["exp_avg_sq"].fill_(9.0)  # admits any of these
    second = optimizer.state[large]["exp_avg_sq"].clone()
    momenta = Momenta([optimizer], CPU)
    momenta.send()
    momenta.receive()
    means = {p: torch.stack(_gathered(values)).mean(0) for p, values in before.items()}
    sizes = {p: torch.stack(_gathered(values.abs())) for p, values in before.items()}
    rounding = {p: size.mean(0) / 16 + size.max() / 229_376 for p, size in sizes.items()}
    apart = [float(((optimizer.state[p]["exp_avg"] - means[p]).abs() / rounding[p]).max()) for p in stepped]
    after = torch.stack(_gathered(optimizer.state[large]["exp_avg"])).mean(0)
    return {
        "apart": max(apart),
        "bias": float((after - means[large]).abs().max() / means[large].abs().max()),
        "second": torch.equal(second, optimizer.state[large]["exp_avg_sq"]),
        "stepped": len(stepped),
    }


def check_silent() -> dict[str, Any]:
    """Messages of optimizers without momentum, and of state in other coordinates, which stays this process's own."""
    weight = torch.nn.Parameter(torch.full((4, 4), float(dist.get_rank())))
    plain = torch.optim.SGD([weight], lr=0.1)
    rotated = torch.optim.AdamW([weight])
    state = {"exp_avg": weight.detach().clone(), "basis": torch.eye(3)}
    rotated.state[weight] = state
    sent = {}
    for name, optimizer in (("plain", plain), ("rotated", rotated)):
        with mock.patch.object(dist, "isend", wraps=dist.isend) as send:
            momenta = Momenta([optimizer], CPU)
            momenta.send()
            momenta.receive()
        sent[name] = send.call_count
    return {"sent": sent, "kept": torch.equal(state["exp_avg"], weight.detach())}


class Bare(ns.LightningModule):
    """A linear layer and SGD with momentum."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(6, 1)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return (self.net(batch[0]) - batch[1]).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def _by_hand(averages: bool) -> torch.Tensor:
    """Both processes in a loop, weights averaged every second step, momentum with them if asked."""
    data: Any = rows(2 * STEPS * 2).dataset
    modules = []
    for _ in range(2):
        torch.manual_seed(4)
        modules.append(Bare())
    moments = [[torch.zeros_like(p) for p in module.parameters()] for module in modules]
    for step in range(STEPS):
        for rank, module in enumerate(modules):
            picked = [2 * (2 * step + index) + rank for index in range(2)]  # a process has every second row
            batch = tuple(tensor[picked] for tensor in data.tensors)
            module.zero_grad()
            module.training_step(batch, step).backward()
            for parameter, moment in zip(module.parameters(), moments[rank], strict=True):
                moment.mul_(0.9).add_(parameter.grad)  # pyright: ignore[reportArgumentType]
                parameter.data -= 0.05 * moment
        if (step + 1) % EVERY:
            continue
        for both in zip(*(module.parameters() for module in modules), strict=True):
            mean = (both[0].data + both[1].data) / 2
            for one in both:
                one.data.copy_(mean)
        for pair in zip(*moments, strict=True) if averages else ():
            sent = [
                from_bytes(to_bytes(torch.nn.functional.pad(one.flatten(), (0, padded(one.numel()) - one.numel()))))
                for one in pair
            ]
            for one, own in zip(pair, sent, strict=True):
                one += (sum(sent) / 2 - own)[: one.numel()].view(one.shape)
    return flat(modules[0].parameters())


def check_fit(folder: Path, averages: bool) -> dict[str, Any]:
    """A fit beside the loop by hand, and beside that of the other setting."""
    strategy = lp.PerfDDP(preset="perf_local_sgd", average_every=EVERY, warmup_steps=0, average_momentum=averages)
    trainer = trainer_of(strategy, folder, max_epochs=1, use_distributed_sampler=False)
    data = rows(2 * STEPS * 2).dataset
    torch.manual_seed(4)
    module = Bare()
    sampler = DistributedSampler(data, 2, int(os.environ["RANK"]), shuffle=False)
    trainer.fit(module, DataLoader(data, batch_size=2, sampler=sampler))
    weights = flat(module.parameters())
    return {
        "steps": trainer.global_step,
        "apart": float((weights - _by_hand(averages)).abs().max()),
        "other": float((weights - _by_hand(not averages)).abs().max()),
    }


def main(out: str) -> None:
    path = Path(out)
    fits = {f"fit-{flag}": lambda flag=flag: check_fit(path.parent, flag) for flag in (True, False)}
    run_cases({**fits, "adam": check_adam, "silent": check_silent}, path)


if __name__ == "__main__":
    main(*sys.argv[1:])
