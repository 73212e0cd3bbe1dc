"""What benchmarks/ddp.py compares: links, modules, strategies, and the goals that were set before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_perf as lp
from lightning_perf.strategies.auto import MOST_STEPS
from lightning_perf.strategies.presets import PRESETS
from lightning_perf_recipes.language_model.networks import Decoder

NEVER = 10**9
#: Lightning's own, and the same once more: what a comparison of equals shows.
BASELINE, AGAIN, NOTHING, AUTO = "ddp", "ddp again", "nothing exchanged", "perf_ddp_auto"


class Task(pl.LightningModule):
    """A net, cross entropy, AdamW, and ``synced`` values logged with ``sync_dist=True`` in every step."""

    def __init__(self, net: nn.Module, synced: int = 0) -> None:
        super().__init__()
        self.net, self.synced = net, synced

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss."""
        x, y = batch
        loss = nn.functional.cross_entropy(self.net(x).flatten(0, -2), y.flatten())
        for index in range(self.synced):
            self.log(f"metric_{index}", loss.detach() * index, on_step=True, on_epoch=False, sync_dist=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def mlp() -> nn.Module:
    """784-256-256-10."""
    return nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))


def norms() -> nn.Module:
    """20 hidden layers of 128, a batch norm behind each."""
    layers: list[nn.Module] = [nn.Linear(784, 128)]
    for _ in range(20):
        layers += [nn.Linear(128, 128), nn.BatchNorm1d(128), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(128, 10))


def gpt() -> nn.Module:
    """A decoder of 7 layers and 1.44M parameters, 5.8 MB of gradients."""
    return Decoder(256, width=128, layers=7, heads=4, block_size=128, dropout=0.0)


def rows(count: int) -> TensorDataset:
    """Vectors of 784 in 10 classes."""
    return TensorDataset(torch.randn(count, 784), torch.randint(10, (count,)))


def texts(count: int) -> TensorDataset:
    """Random bytes, 128 a row, and those that follow."""
    data = torch.randint(256, (count, 129))
    return TensorDataset(data[:, :-1].contiguous(), data[:, 1:].contiguous())


def preset(name: str, **arguments: Any) -> Callable[[], Any]:
    """A strategy of ours, made anew for each fit."""
    return lambda: lp.PerfDDP(preset=name, **arguments)


#: A bound that no exchange can beat: every process trains by itself, and is never asked anything.
BOUND = preset("perf_local_sgd", average_every=NEVER, warmup_steps=0, agree_every=NEVER)
LOCAL = preset("perf_local_sgd", average_every=8, warmup_steps=0)


@dataclass(frozen=True)
class Part:
    """One comparison on one link (``rate`` in bits a second, ``delay`` in seconds one way; both None: loopback).

    A fit of ``skip + steps`` steps gives the mean time of the last ``steps``; in a round every variant is fitted once. Where
    ``perf_ddp_auto`` is among them, a fit stops there in the midst of an epoch: in shorter ones nothing is tried.
    ``goals`` are (quantity, variant, value, bound of the interval that counts).
    """

    title: str
    net: Callable[[], nn.Module]
    data: Callable[[int], TensorDataset]
    batch: int
    variants: Mapping[str, Callable[[], Any]]
    goals: tuple[tuple[str, str, float, str], ...]
    rate: float | None = None
    delay: float | None = None
    rounds: int = 12
    steps: int = 24
    skip: int = 3
    accumulate: int = 1
    synced: int = 0

    def module(self, variant: str) -> Task:
        """The module of a variant; where nothing is exchanged, nothing is logged together either."""
        torch.manual_seed(0)
        return Task(self.net(), 0 if variant == NOTHING else self.synced)

    @property
    def batches(self) -> int:
        """Micro-batches of a fit; the last one shows when the step before it was over."""
        return (self.skip + self.steps) * self.accumulate + 1

    def loader(self, world_size: int) -> DataLoader:
        """Batches for every process: one micro-batch more than is timed, or enough for trials."""
        batches = self.batches if AUTO not in self.variants else max(self.batches, MOST_STEPS + 1)
        return DataLoader(self.data(batches * world_size * self.batch), batch_size=self.batch)


_PAIR: dict[str, Callable[[], Any]] = {
    BASELINE: lambda: BASELINE,
    AGAIN: lambda: BASELINE,
    "perf_ddp": preset("perf_ddp"),
}
_BOUNDED = {**_PAIR, NOTHING: BOUND}
_ALL = {
    **_PAIR,
    "perf_ddp_overlap": preset("perf_ddp_overlap"),
    "perf_ddp_bf16": preset("perf_ddp_bf16"),
    "perf_ddp_int8": preset("perf_ddp_int8"),
    "perf_local_sgd": LOCAL,
    NOTHING: BOUND,
}
_POOL = {name: preset(name) for name in ("perf_ddp", "perf_ddp_static", "perf_ddp_overlap", AUTO) if name in PRESETS}
_CHOICE: dict[str, Any] = {
    "net": gpt,
    "data": texts,
    "batch": 4,
    "variants": {BASELINE: lambda: BASELINE, **_POOL},
    "goals": (("of_best", AUTO, 0.9, "estimate"), ("trial_steps", AUTO, 60, "estimate")),
    "rounds": 5,
    "steps": 8,
}

PARTS = {
    "logs": Part(
        "5 sync_dist metrics, MLP, 1 Gbit/s and 10 ms one way",
        mlp, rows, 32, _BOUNDED, (("step_seconds", "perf_ddp", 2.0, "estimate"),),
        rate=1e9, delay=0.01, rounds=6, steps=20, synced=5,
    ),
    "norms": Part(
        "20 batch norms, accumulation 4, 1 Gbit/s and 10 ms one way",
        norms, rows, 64, _BOUNDED, (("step_seconds", "perf_ddp", 1.4, "estimate"),),
        rate=1e9, delay=0.01, rounds=6, steps=20, accumulate=4,
    ),
    "loopback": Part(
        "nothing to gain: GPT of 1.4M parameters, loopback",
        gpt, texts, 4, _PAIR, (("step_seconds", "perf_ddp", 0.97, "low"),), rounds=14, steps=24,
    ),
    "slow_link": Part(
        "GPT of 1.4M parameters, 100 Mbit/s and 10 ms one way",
        gpt, texts, 4, _ALL,
        (
            ("gain_share", "perf_ddp_bf16", 0.6, "estimate"),
            ("gain_share", "perf_ddp_int8", 0.6, "estimate"),
            ("gain_share", "perf_local_sgd", 0.8, "estimate"),
        ),
        rate=100e6, delay=0.01, rounds=5, steps=8,
    ),
    "fast_link": Part(
        "GPT of 1.4M parameters, 1 Gbit/s and 1 ms one way",
        gpt, texts, 4, _ALL, (), rate=1e9, delay=0.001, rounds=5, steps=16,
    ),
    "auto_slow": Part("perf_ddp_auto, GPT, 100 Mbit/s and 10 ms one way", **_CHOICE, rate=100e6, delay=0.01),
    "auto_fast": Part("perf_ddp_auto, GPT, 1 Gbit/s and 1 ms one way", **_CHOICE, rate=1e9, delay=0.001),
    "auto_loopback": Part("perf_ddp_auto, GPT, loopback", **_CHOICE),
}  # fmt: skip
