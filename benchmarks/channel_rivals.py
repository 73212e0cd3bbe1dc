"""Torch-Pruning as one would use it by hand in a Trainer: prune between two epochs, rebuild the optimizer, go on."""

from __future__ import annotations

import copy
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

import lightning_perf as lp


class TorchPruningByHand(pl.Callback):
    """Torch-Pruning's global magnitude pruner on ``module.net``, to a share of its MACs, before one epoch.

    The ratio is the smallest of a bisection that meets the share. The optimizer keeps its groups and the learning rate of
    its schedule, and loses its state, as the library's own examples do.

    Args:
        share: of the MACs that is left.
        epoch: before which the cut is made.
        example: inputs of ``net``.
        head: names of layers of ``net`` that keep their outputs.
        round_to: channels are a multiple of this.
    """

    def __init__(self, share: float, epoch: int, example: Tensor, head: tuple[str, ...], round_to: int) -> None:
        self.share, self.epoch, self.example, self.head, self.round_to = share, epoch, example, head, round_to
        self.ratio = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning's hook."""
        if trainer.current_epoch != self.epoch:
            return
        net: Any = pl_module.net
        names = {id(parameter): name for name, parameter in pl_module.named_parameters()}
        groups = [[names[id(p)] for p in group["params"]] for group in trainer.optimizers[0].param_groups]
        whole, low, high = lp.count_macs(net, self.example), 0.0, 1.0
        for _ in range(10):
            middle = (low + high) / 2
            left = lp.count_macs(self._pruned(copy.deepcopy(net), middle), self.example) / whole
            low, high = (low, middle) if left <= self.share else (middle, high)
        self.ratio = high
        self._pruned(net, high)
        net.train()
        parameters = dict(pl_module.named_parameters())
        for group, members in zip(trainer.optimizers[0].param_groups, groups, strict=True):
            group["params"] = [parameters[name] for name in members]
        trainer.optimizers[0].state.clear()

    def _pruned(self, net: nn.Module, ratio: float) -> nn.Module:
        import torch_pruning

        net.eval()
        torch_pruning.pruner.BasePruner(
            net,
            self.example,
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            global_pruning=True,
            pruning_ratio=ratio,
            max_pruning_ratio=0.95,
            ignored_layers=[net.get_submodule(name) for name in self.head],
            round_to=self.round_to,
        ).step()
        with torch.no_grad():
            net(self.example)  # it raises here if a shape does not fit
        return net
