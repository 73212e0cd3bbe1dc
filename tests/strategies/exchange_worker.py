"""Exchanges of gradients of two dtypes, and after a fit that failed; started by ``test_exchange.py``."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as ns
import torch
import torch.distributed as dist

import lightning_perf as lp
from lightning_perf.strategies.compression_hooks import compress
from tests.ranks import run_cases
from tests.strategies.modules import rows
from tests.strategies.worker import everywhere, flat, trainer_of


class Mixed(torch.nn.Module):
    """Float32 around two layers in bfloat16: DDP's last bucket holds some of these."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle = (torch.nn.Linear(8, 8, dtype=torch.bfloat16) for _ in range(2))
        self.last = torch.nn.Linear(8, 8)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.last(self.middle(self.first(rows.bfloat16()).relu()).float())


def check_mixed() -> dict[str, Any]:
    """Gradients of three backwards with each compression, in units of the largest one, beside those of plain ddp."""
    generator = torch.Generator().manual_seed(dist.get_rank())
    batches = [torch.randn(4, 8, generator=generator) for _ in range(3)]

    def go(compression: str | None) -> list[torch.Tensor]:
        torch.manual_seed(5)
        wrapper = torch.nn.parallel.DistributedDataParallel(Mixed())
        if compression is not None:
            compress(wrapper, compression, None, print)
        found = []
        for batch in batches:
            wrapper.zero_grad()
            wrapper(batch).square().mean().backward()
            found += [one.grad.float() for one in wrapper.parameters() if one.grad is not None]
        return found

    plain = go(None)
    found = {}
    for compression in ("bf16", "int8"):
        pairs = list(zip(plain, go(compression), strict=True))
        found[compression] = max(float((one - other).abs().max() / one.abs().max()) for one, other in pairs)
    return {"gradients": len(plain), "apart": found}


class InTurns(torch.nn.Module):
    """Two networks of which a forward uses one: one slope of 1 or 2 and many small ones, which int8 sends one at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (torch.nn.Parameter(torch.zeros(256)) for _ in range(2))
        slopes = torch.full((256,), 1e-3)
        slopes[0] = 1.0
        self.slopes = slopes * (1 + dist.get_rank())

    def forward(self, name: str) -> torch.Tensor:
        return (getattr(self, name) * self.slopes).sum()


def check_turns(order: str) -> dict[str, Any]:
    """A small weight of both networks after 60 steps each with SGD, with every way of sending.

    The gradients of a network are cleared behind its step or before its backward, and then those of its last step lie there
    in the other's backward; or each process uses the other network.
    """

    if not dist.is_initialized():  # alone, without the fits before it
        dist.init_process_group("gloo")

    def go(compression: str | None) -> list[float]:
        wrapper = torch.nn.parallel.DistributedDataParallel(InTurns(), find_unused_parameters=True)
        if compression is not None:
            compress(wrapper, compression, None, print)
        optimizers = {name: torch.optim.SGD([getattr(wrapper.module, name)], lr=1.0) for name in ("a", "b")}
        for step in range(120):
            name = "ab"[(step + (dist.get_rank() if order == "apart" else 0)) % 2]
            stepped = list(optimizers.values()) if order == "apart" else [optimizers[name]]
            for optimizer in stepped if order != "cleared_behind" else ():
                optimizer.zero_grad()
            wrapper(name).backward()
            for optimizer in stepped:
                optimizer.step()
                if order == "cleared_behind":
                    optimizer.zero_grad()
        return [float(weight[1]) for weight in wrapper.parameters()]

    return {str(compression): go(compression) for compression in (None, "bf16", "int8")}


class Deep(ns.LightningModule):
    """Messages of some 64 KB: small ones arrive whole before anybody can let go of them."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(6, 256), *[torch.nn.Linear(256, 256) for _ in range(8)])

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Boom(ns.Callback):
    """Fails in the third batch: in a backward that has sent a part of its gradients, or before."""

    def __init__(self, where: str) -> None:
        self.where = where

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        if trainer.global_step != 2:
            return
        if self.where == "forward":
            raise ArithmeticError(self.where)
        time.sleep(0.7 + 1.5 * trainer.global_rank)  # the other one has let go of everything by then
        pl_module.net[3].weight.register_hook(self.fail)

    def fail(self, gradient: torch.Tensor) -> None:
        raise ArithmeticError(self.where)


def check_failed(compression: str, where: str, folder: Path) -> dict[str, Any]:
    """A fit that ends by an exception on both ranks, ``where`` on rank 1, between two that end alike."""
    weights, failed = [], False
    for failing in (False, True, False):
        torch.manual_seed(3)
        callbacks = [Boom(where if dist.get_rank() else "backward")] if failing else []
        strategy = lp.PerfDDP(preset=f"perf_ddp_{compression}", timeout=timedelta(seconds=8))
        trainer, module = trainer_of(strategy, folder, callbacks=callbacks, max_epochs=1), Deep()
        try:
            trainer.fit(module, rows())
        except ArithmeticError:
            failed = True
        if not failing:
            weights.append(flat(module.parameters()))
        del strategy, trainer, module
        gc.collect()
    return {"failed": everywhere(failed), "equal": everywhere(torch.equal(*weights))}


def main(out: str, *only: str) -> None:
    path = Path(out)
    cases: dict[str, Callable[[], Any]] = {}
    for compression in ("bf16", "int8"):
        for where in ("backward", "forward"):
            cases[f"failed-{compression}-{where}"] = lambda compression=compression, where=where: check_failed(
                compression, where, path.parent
            )
    cases["mixed"] = check_mixed  # in the process group of the fits
    for order in ("cleared_behind", "cleared_before", "apart"):
        cases[f"turns-{order}"] = lambda order=order: check_turns(order)
    run_cases({name: case for name, case in cases.items() if not only or name in only}, path)


if __name__ == "__main__":
    main(*sys.argv[1:])
