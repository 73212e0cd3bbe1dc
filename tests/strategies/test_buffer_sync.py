"""Which buffers travel, in one process: the collectives are lists."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lightning_perf.strategies.alike_buffers import AlikeBuffers
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
    """A module under BufferSync, and the names that were sent before every forward.

    ``others`` is what another process answers when it is asked for its layouts: none are asked for where it has the same.
    """

    def __init__(self, module: Net) -> None:
        self.module = module
        self.sent: list[list[str]] = []
        self.asked: list[int] = []
        self.said: list[str] = []
        self.others: Callable[[Any], Any] | None = None
        self.alike = AlikeBuffers(module, self.largest, self.everyone, self.said.append)
        self.buffers = BufferSync(module, self.broadcast, self.alike)
        self.alike.agree()
        self.buffers.watch()

    def largest(self, numbers: list[int]) -> list[int]:
        self.asked.append(len(numbers))
        return [numbers[0] + 1, *numbers[1:]] if self.others else numbers

    def everyone(self, mine: Any) -> list[Any]:
        assert self.others is not None
        others, self.others = self.others, None
        return [mine, others(mine)]

    def broadcast(self, tensors: list[torch.Tensor]) -> None:
        names = {id(buffer): name for name, buffer in self.module.named_buffers()}
        self.sent[-1] += [names.get(id(tensor), "a stand-in") for tensor in tensors]

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


def test_what_differs_elsewhere_stays_at_home() -> None:
    """One line names it; DDP does not send it when it wraps the module, and nothing is asked for a second time."""
    module = Net()
    run = Run(module)
    run.others = lambda mine: {**mine, "mask": ((3,), torch.float32), "cache": ((1,), torch.float32)}
    assert sorted(run.forward(lambda: module.mask.add_(1))) == ["mean", *STATISTICS]
    assert run.said == ["buffers that differ between processes stay each one's own: cache, mask."]
    with run.alike.hidden():
        assert module._ddp_params_and_buffers_to_ignore == ["cache", "mask"]
    assert not hasattr(module, "_ddp_params_and_buffers_to_ignore")
    assert sorted(run.forward(lambda: module.mask.add_(1))) == ["mean", *STATISTICS]
    assert run.forward(lambda: module.mask.add_(1)) == []
    assert not run.buffers.ask()
    assert len(run.said) == 1


def test_a_layout_that_changes_is_agreed_on_before_it_is_sent() -> None:
    """Three numbers say that nothing differs; they are asked for in every forward only where a layout has changed."""
    module = Net()
    run = Run(module)

    def grow() -> None:
        module.mean = torch.cat([module.mean, torch.ones(1)])

    for _ in range(2):
        run.forward(lambda: module.mean.add_(1))
    run.asked.clear()
    assert [run.forward(lambda: module.mean.add_(1)) for _ in range(2)] == [["mean"]] * 2
    assert run.asked == [4, 2]  # which ones change, once: whether one does, and then the mask and the mean
    module.mean = torch.arange(3.0)
    assert run.buffers.ask()
    assert run.forward() == ["a stand-in"]
    assert torch.equal(run.alike.parcel(["mean"])[0], torch.arange(2.0))
    run.buffers.answer(True)
    run.asked.clear()
    assert [run.forward(grow) for _ in range(3)] == [["mean"]] * 3
    assert run.asked == [2, 2, 2]
    run.buffers.watch()
    for _ in range(4):
        run.forward(lambda: module.mean.add_(1))
    assert run.asked == [2, 2, 2, 2, 2, 4]


def test_what_ddp_is_told_to_ignore_stays_at_home() -> None:
    module = Net()
    vars(module)["_ddp_params_and_buffers_to_ignore"] = ["mask"]
    run = Run(module)
    assert sorted(run.forward(lambda: module.mask.add_(1))) == ["mean", *STATISTICS]
    with run.alike.hidden():
        assert module._ddp_params_and_buffers_to_ignore == ["mask"]
    assert module._ddp_params_and_buffers_to_ignore == ["mask"]


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
