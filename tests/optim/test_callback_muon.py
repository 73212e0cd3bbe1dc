"""OptimizerFactory("muon") on a Trainer: its groups, its cost, the user's scheduler and learning rates."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

import lightning_perf as lp
from lightning_perf.optim.muon import Muon


def fit(ns: ModuleType, quiet: dict[str, Any], factory: Any, configure: Callable[[Any], Any]) -> tuple[Any, Any]:
    class Deep(ns.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(*[nn.Linear(8, 8) for _ in range(4)])

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return (self.net(batch[0]) - batch[0].flip(1)).square().mean()

        def configure_optimizers(self) -> Any:
            return configure(self)

    torch.manual_seed(0)
    trainer = ns.Trainer(**quiet, max_epochs=1, callbacks=[factory])
    module = Deep()
    trainer.fit(module, DataLoader(TensorDataset(torch.randn(32, 8)), batch_size=8))
    return trainer, module


def test_groups_and_cost_are_said(ns: ModuleType, quiet: dict[str, Any]) -> None:
    factory = lp.OptimizerFactory("muon", lr=0.01, groups={"net.3.*": {"lr": 0.001}})
    trainer, _ = fit(ns, quiet, factory, lambda m: torch.optim.AdamW(m.parameters(), lr=1e-3))
    (optimizer,) = trainer.optimizers
    assert type(getattr(optimizer, "_optimizer", optimizer)) is Muon
    table = [(group["name"], group["lr"], group["matrices"]) for group in optimizer.param_groups]
    assert table == [
        ("net.3.* (decay)", 0.001, [0]),
        ("net.3.* (no_decay)", 0.001, [0]),
        ("decay (muon)", 0.01, [1, 1]),
        ("decay", 0.01, [0]),
        ("no_decay", 0.01, [0, 0, 0]),
    ]
    assert "decay (muon)" in factory.messages[0]
    assert factory.messages[1].startswith("OptimizerFactory: Newton-Schulz on 2 matrices costs over 10 %")
    assert factory.messages[2].endswith("Muon: it has a step of its own, which needs no fused kernel.")


def test_the_users_scheduler_keeps_its_groups(ns: ModuleType, quiet: dict[str, Any]) -> None:
    """Groups that a scheduler is bound to stay whole, and Muon still takes the hidden matrices in them."""

    def configure(module: Any) -> Any:
        groups = [{"params": module.net[:2].parameters()}, {"params": module.net[2:].parameters(), "lr": 1e-3}]
        optimizer = torch.optim.AdamW(groups, lr=1e-2)
        return [optimizer], [{"scheduler": lr_scheduler.LinearLR(optimizer, 1.0, 0.5, 4), "interval": "step"}]

    trainer, _ = fit(ns, quiet, lp.OptimizerFactory("muon", lr=0.1), configure)
    (optimizer,) = trainer.optimizers
    assert [group["matrices"] for group in optimizer.param_groups] == [[0, 0, 1, 0], [1, 0, 0, 0]]
    assert [round(group["lr"], 6) for group in optimizer.param_groups] == [0.05, 0.005]


def test_learning_rates_of_different_size_stay_apart(ns: ModuleType, quiet: dict[str, Any]) -> None:
    def configure(module: Any) -> Any:
        groups = [{"params": module.net[:2].parameters()}, {"params": module.net[2:].parameters(), "lr": 1e-3}]
        return torch.optim.AdamW(groups, lr=1e-2)

    trainer, _ = fit(ns, quiet, lp.OptimizerFactory("muon", lr=0.1, weight_decay=0.0), configure)
    table = [
        (group["name"], round(group["lr"], 9), sum(group["matrices"])) for group in trainer.optimizers[0].param_groups
    ]
    assert table == [
        ("decay (lr x1) (muon)", 0.1, 1),
        ("decay (lr x1)", 0.1, 0),
        ("decay (lr x0.1) (muon)", 0.01, 1),
        ("decay (lr x0.1)", 0.01, 0),
        ("no_decay (lr x1)", 0.1, 0),
        ("no_decay (lr x0.1)", 0.01, 0),
    ]
