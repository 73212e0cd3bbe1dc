"""Torch-Pruning as one would use it by hand in a Trainer: prune between two epochs, rebuild the optimizer, go on."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

import lightning_perf as lp


class TorchPruningByHand(pl.Callback):
    """Torch-Pruning's global magnitude pruner on ``module.net``, to a share of its MACs, before one epoch.

    The ratio is the smallest that meets the share. The pruner leaves a layer whole of which rounding would take everything,
    so that from some ratio on more of the net is left, and a small share may not be met at all; then the rounding is halved,
    until it is. The layers to ignore are the first of the lists given with which a pruned net runs at all, as one would
    find out by hand. The optimizer keeps its groups and the learning rate of its schedule, and loses its state, as in the
    library's own examples.

    Args:
        share: of the MACs that is left.
        epoch: before which the cut is made.
        example: inputs of ``net``.
        ignored: lists of names of layers of ``net`` that keep their outputs, to be tried in turn.
        round_to: channels are a multiple of this, or of the half of it, and so on.
    """

    def __init__(
        self, share: float, epoch: int, example: Tensor, ignored: Sequence[Sequence[str]], round_to: int
    ) -> None:
        self.share, self.epoch, self.example, self.round_to = share, epoch, example, round_to
        self.ignored = list(ignored)
        self.failures: list[str] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning's hook."""
        if trainer.current_epoch != self.epoch:
            return
        net: Any = pl_module.net
        names = {id(parameter): name for name, parameter in pl_module.named_parameters()}
        groups = [[names[id(p)] for p in group["params"]] for group in trainer.optimizers[0].param_groups]
        self._drop_what_breaks(net)
        self._pruned(net, self._ratio(net))
        net.train()
        parameters = dict(pl_module.named_parameters())
        for group, members in zip(trainer.optimizers[0].param_groups, groups, strict=True):
            group["params"] = [parameters[name] for name in members]
        trainer.optimizers[0].state.clear()

    def _ratio(self, net: nn.Module) -> float:
        """The smallest that meets the share, to a thousandth."""
        whole = lp.count_macs(net, self.example)

        def meets(ratio: float) -> bool:
            return lp.count_macs(self._pruned(copy.deepcopy(net), ratio), self.example) <= self.share * whole

        while True:
            high = next((step / 64 for step in range(1, 64) if meets(step / 64)), None)
            if high is not None:
                break
            if self.round_to == 1:
                raise RuntimeError(f"Torch-Pruning leaves more than {self.share:.2f} of the MACs at every ratio.")
            self.failures.append(f"rounded to {self.round_to}: more than {self.share:.2f} of the MACs at every ratio")
            self.round_to //= 2
        low = high - 1 / 64
        for _ in range(4):
            middle = (low + high) / 2
            low, high = (low, middle) if meets(middle) else (middle, high)
        return high

    def _drop_what_breaks(self, net: nn.Module) -> None:
        """Lists of ignored layers with which a pruned net does not run; what it raises is kept."""
        while True:
            try:
                for ratio in (0.25, 0.5, 0.75):
                    self._pruned(copy.deepcopy(net), ratio)
                return
            except Exception as error:
                self.failures.append(f"ignoring {', '.join(self.ignored.pop(0))}: {type(error).__name__}: {error}")
                if not self.ignored:
                    raise

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
            ignored_layers=[net.get_submodule(name) for name in self.ignored[0]],
            round_to=self.round_to,
        ).step()
        with torch.no_grad():
            net(self.example)  # it raises here if a shape does not fit
        return net
