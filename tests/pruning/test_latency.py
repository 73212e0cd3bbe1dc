"""Latency as a target, on a clock that each call advances by what it would cost; and real runtimes without a clock."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import lightning_perf as lp
from lightning_perf.deploy.source import NotExportable, Source
from lightning_perf.deploy.variant import Run, Variant
from lightning_perf.pruning import callback_measure
from lightning_perf.pruning.callback_latency import Latency

pytest.importorskip("torch_pruning", reason="needs torch-pruning (extra prune)")


class Clock:
    """Stands still but for the calls of :class:`Layer`; a call of the process's own speed makes it jump."""

    now, slowness = 0.0, 1.0


def tick(seconds: float) -> None:
    Clock.now += Clock.slowness * seconds


def clock() -> float:
    return Clock.now


@pytest.fixture(autouse=True)
def _at_zero() -> None:
    Clock.now, Clock.slowness = 0.0, 1.0


class Layer(nn.Linear):
    """A linear layer whose call takes a millisecond and one more for each output."""

    def forward(self, input: Tensor) -> Tensor:
        if not torch.compiler.is_exporting():
            tick(1e-3 * (1 + self.out_features))
        return super().forward(input)


def net(width: int = 16) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Layer(64, width), nn.ReLU(), Layer(width, 3))


def runtime(factor: float, fails_below: int = 0) -> Any:
    """A builder of a runtime that is as fast as eager times a factor, and takes no layer below a width."""

    def build(source: Source, precision: str, folder: Path) -> list[Variant]:
        assert precision == "fp32"
        if len(next(source.plain.parameters())) < fails_below:
            raise NotExportable("it is too small")

        def open_on(threads: int | None) -> Run:
            def run(tensors: Sequence[Tensor]) -> list[Tensor]:
                before = Clock.now
                output = source.plain(*tensors)
                Clock.now = before + factor * (Clock.now - before)
                return [output]

            return run

        return [Variant("fake-fp32", "fake", precision, "", (), open_on)]

    return build


def latency(whole: nn.Module, **builders: Any) -> Latency:
    x = torch.ones(4, 64)
    return Latency(whole, ((x,), {}), lambda net: net(x), builders=builders, clock=clock)


def test_the_fastest_way_by_the_clock() -> None:
    """A call of the whole: 17 + 4 ms. Cuts are measured where the whole is fastest, by the ratio of pairs."""
    measured = latency(net(), slow=runtime(2.0), quick=runtime(0.5))
    assert list(measured.seconds) == ["quick", "eager", "slow"]
    assert measured.seconds == pytest.approx({"quick": 0.0105, "eager": 0.021, "slow": 0.042})
    assert measured.share_of(net(8)) == pytest.approx((9 + 4) / (17 + 4))
    assert measured.sentence() == "a call takes quick 10.5 ms, eager 21 ms, slow 42 ms; cuts are measured in quick"
    assert latency(net(), slow=runtime(2.0)).way == "eager"


def test_a_machine_that_slows_down_slows_both() -> None:
    """Ten times slower from the first measurement on, as when another job starts: the share is the same."""
    measured = latency(net(), quick=runtime(0.5))
    Clock.slowness = 10.0
    assert measured.share_of(net(8)) == pytest.approx(13 / 21)


def test_a_spike_within_one_pair_does_not_move_the_median() -> None:
    measured, small = latency(net()), net(8)
    calls = 0

    def hiccup(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 9:
            tick(5.0)

    small[0].register_forward_hook(hiccup)
    assert measured.share_of(small) == pytest.approx(13 / 21)
    assert calls > 9


def test_what_a_runtime_cannot_take_is_said_and_another_way_taken() -> None:
    def broken(source: Source, precision: str, folder: Path) -> list[Variant]:
        raise ValueError("it has no operator for that")

    def wrong(source: Source, precision: str, folder: Path) -> list[Variant]:
        return [Variant("w", "w", precision, "", (), lambda threads: lambda tensors: [torch.zeros(len(tensors[0]), 3)])]

    measured = latency(net(), broken=broken, wrong=wrong, picky=runtime(0.5, fails_below=12))
    assert list(measured.seconds) == ["picky", "eager"]
    assert measured.left_out["broken"] == "it has no operator for that"
    assert "its outputs are not those of the module (call 1" in measured.left_out["wrong"]
    assert measured.share_of(net(8)) == pytest.approx(13 / 21)
    assert measured.way == "eager"
    assert "not picky: it takes the whole module, but not a smaller one: it is too small" in measured.sentence()


def test_a_call_that_cannot_be_exported_is_timed_eagerly() -> None:
    whole, x = net(), torch.ones(4, 64)
    measured = Latency(whole, "nobody knows", lambda net: net(x), builders={"quick": runtime(0.5)}, clock=clock)
    assert list(measured.seconds) == ["eager"]
    assert measured.left_out == {"quick": "nobody knows"}
    odd = Latency(whole, (({1: x},), {}), lambda net: net(x), builders={"quick": runtime(0.5)}, clock=clock)
    assert list(odd.seconds) == ["eager"]
    assert "has the key 1; only strings can be kept" in odd.left_out["quick"]


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_installed_runtimes(name: str) -> None:
    """The real ones: what is installed is measured beside eager; control flow on values is refused with the reason."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"needs {name} (extra deploy)")

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(64, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.one(x) if float(x.sum()) > 0 else -self.one(x)

    x = torch.ones(4, 64)
    plain = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 3))
    measured = Latency(plain, ((x,), {}), lambda net: net(x))
    assert {"eager", name} <= measured.seconds.keys()
    assert measured.way in measured.seconds
    assert not measured.left_out.get(name)
    refused = Latency(Branches(), ((x,), {}), lambda net: net(x))
    assert list(refused.seconds) == ["eager"]
    assert refused.left_out[name]


def module_of(ns: ModuleType, flattens: bool = True) -> Any:
    """One that gives ``forward`` images, or one whose step flattens them for ``forward``; batches are a tensor."""

    class Module(ns.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net(64)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x.flatten(1) if flattens else x)

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return self(batch if flattens else batch.flatten(1)).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Module()


def fit(ns: ModuleType, quiet: dict[str, Any], pruning: Any, patch: Any, module: Any = None, **builders: Any) -> Any:
    patch.setattr(callback_measure, "Latency", lambda *args: Latency(*args, builders=builders, clock=clock))
    module = module_of(ns) if module is None else module
    images = torch.randn(24, 1, 8, 8, generator=torch.Generator().manual_seed(7))
    ns.Trainer(**quiet, max_epochs=4, callbacks=[pruning]).fit(module, DataLoader(images, batch_size=4))
    return module


def test_a_step_is_timed_where_forward_takes_no_batch(
    pl: ModuleType, quiet: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch is a tensor and ``forward`` refuses it: the step itself is timed, and no runtime."""
    pruning = lp.ChannelPruning(0.5, measure="latency")
    module = fit(pl, quiet, pruning, monkeypatch, module_of(pl, flattens=False), quick=runtime(0.5))
    assert module.net[0].out_features == 24
    line = next(line for line in pruning.messages if "a call takes" in line)
    assert "a call takes eager 69 ms; not quick: forward(batch) raises RuntimeError" in line


def test_a_fit_meets_a_latency(ns: ModuleType, quiet: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """65 + 4 ms; 0.5 of it leaves at most 29 outputs, which is 24 in multiples of 8. In two steps: 0.707 of it first."""
    pruning = lp.ChannelPruning(0.5, measure="latency", at=0.25)
    module = fit(ns, quiet, pruning, monkeypatch)
    assert module.net[0].out_features == 24
    assert any("a call takes eager 69 ms" in line for line in pruning.messages)
    assert any(f"latency cut from 1 to {29 / 69:.3g} of the whole (target 0.5)" in line for line in pruning.messages)
    twice = lp.ChannelPruning(0.5, measure="latency", at=0.25, steps=2)
    assert fit(ns, quiet, twice, monkeypatch).net[0].out_features == 24
    assert any(f"cut from 1 to {45 / 69:.3g} of the whole (target 0.707)" in line for line in twice.messages)
    assert any(f"cut from {45 / 69:.3g} to {29 / 69:.3g} of the whole" in line for line in twice.messages)


def test_a_latency_out_of_reach(pl: ModuleType, quiet: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """With 8 outputs left it is 9 + 4 of 69 ms: the best there is, and the last layer's outputs are what stops it."""
    with pytest.raises(
        ValueError, match=rf"target=0.1 cannot be met: .* it is {13 / 69:.3g}. Left out: net.2: 3 channels"
    ):
        fit(pl, quiet, lp.ChannelPruning(0.1, measure="latency"), monkeypatch)


@pytest.fixture
def pl() -> ModuleType:
    import lightning.pytorch

    return lightning.pytorch
