"""Which buffers travel, in one process: the collectives are lists."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lightning_perf.strategies.buffer_sync import BufferSync, deferrable, is_compiled


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.mask: torch.Tensor
        self.mean: torch.Tensor
        self.register_buffer("mask", torch.ones(2))
        self.register_buffer("mean", torch.zeros(2))


class Run:
    """A module under BufferSync, and the names that were sent before every forward."""

    def __init__(self, module: Net) -> None:
        self.module = module
        self.sent: list[list[str]] = []
        self.buffers = BufferSync(module, self.broadcast, lambda flags: flags)
        self.buffers.watch()

    def broadcast(self, tensors: list[torch.Tensor]) -> None:
        names = {id(buffer): name for name, buffer in self.module.named_buffers()}
        self.sent[-1] += [names[id(tensor)] for tensor in tensors]

    def forward(self, change: Any = None) -> list[str]:
        """One forward; ``change()`` happens inside it."""
        self.sent.append([])
        with self.buffers.forward():
            self.buffers(None, dict(self.module.named_buffers()))
            self.module.norm(torch.randn(4, 2))
            if change:
                change()
        return [name for name in self.sent[-1] if not name.startswith("norm.num")]


STATISTICS = ["norm.running_mean", "norm.running_var"]


def test_constants_and_statistics_stay_at_home() -> None:
    run = Run(Net())
    everything = ["mask", "mean", *STATISTICS]
    assert sorted(run.forward()) == sorted(everything)
    assert sorted(run.forward()) == sorted(everything)
    assert run.forward() == []
    run.module.eval()
    assert sorted(run.forward()) == sorted(everything)
    run.module.train()
    assert run.forward() == []


def test_what_changes_travels() -> None:
    module = Net()
    run = Run(module)
    for _ in range(2):
        run.forward(lambda: module.mean.add_(1))
    assert run.forward() == ["mean"]


def test_a_late_change_is_noticed_at_the_agreement() -> None:
    """In place or by assignment of another tensor."""
    module = Net()
    run = Run(module)
    for _ in range(3):
        run.forward()
    assert not run.buffers.ask()
    module.mask = torch.zeros(2)
    assert run.buffers.ask()
    run.buffers.answer(True)
    assert run.forward() == ["mask"]
    assert not run.buffers.ask()


def test_a_frozen_norm_is_sent_once() -> None:
    module = Net()
    run = Run(module)
    for _ in range(3):
        run.forward()
    module.norm.eval()
    assert run.forward() == STATISTICS
    assert run.forward() == []


def test_a_norm_that_evaluates_in_the_midst_of_training_gets_its_statistics_every_time() -> None:
    module = Net()
    run = Run(module)

    def evaluate() -> None:
        module.norm.eval()
        module.norm(torch.randn(4, 2))
        module.norm.train()

    for _ in range(2):
        run.forward(evaluate)
    assert run.forward() == STATISTICS
    assert not module.norm._forward_pre_hooks


def test_only_norms_that_do_not_read_their_statistics_are_deferred() -> None:
    class Reader(nn.BatchNorm1d):
        pass

    fused = torch.ao.nn.intrinsic.qat.ConvBn1d(1, 1, 1, qconfig=torch.ao.quantization.get_default_qat_qconfig())
    module = nn.ModuleDict({"a": nn.BatchNorm1d(2), "b": Reader(2), "c": fused, "d": nn.InstanceNorm1d(2)})
    assert list(deferrable(module)) == ["a"]


def test_a_compiled_module_is_left_to_ddp() -> None:
    module = Net()
    assert not is_compiled(module)
    module.norm.compile()
    assert is_compiled(module)
    run = Run(module)
    assert run.buffers._layers == {}
