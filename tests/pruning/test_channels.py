"""Channels taken out of awkward modules, by hand-computed slices and by the loss with zeros in their place; in fits, too."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lightning_perf as lp
from lightning_perf.host import MisconfigurationException
from lightning_perf.pruning.channels import Channels, meet
from lightning_perf.pruning.cut import Cut
from lightning_perf.pruning.shapes import reshape, shapes_of
from tests.contract.modules import images, make

pytest.importorskip("torch_pruning", reason="needs torch-pruning (extra prune)")


@pytest.fixture
def pl() -> ModuleType:
    import lightning.pytorch

    return lightning.pytorch


class Residual(nn.Module):
    """A shortcut with batch norm: both convolutions in front of the sum go together."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.one, self.two = nn.Conv2d(16, 12, 3, padding=1), nn.Conv2d(12, 16, 3, padding=1, bias=False)
        self.again = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = (x + self.again(self.two(self.one(x).relu()))).relu()
        return self.head(x.mean((2, 3)))


class Mobile(nn.Module):
    """Depthwise and grouped convolutions, a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.depth = nn.Conv2d(1, 16, 1), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.left, self.right = nn.Conv2d(16, 8, 1), nn.Conv2d(16, 8, 1)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=2)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depth(self.wide(x).relu()).relu()
        x = self.grouped(torch.cat([self.left(x), self.right(x)], 1).relu())
        return self.head(x.relu().mean((2, 3)))


class Attention(nn.Module):
    """A fused projection with hard-coded views, an MLP, layer norms, an embedding tied to the output."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 16)
        self.norm, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.up, self.down = nn.Linear(16, 64), nn.Linear(64, 16)
        self.head = nn.Linear(16, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding((x.flatten(1)[:, :6] * 3).long().abs() % 11)
        q, k, v = self.qkv(self.norm(x)).view(len(x), 6, 3, 4, 4).permute(2, 0, 3, 1, 4)
        mixed = (q @ k.mT / 2).softmax(-1) @ v
        x = x + self.out(mixed.transpose(1, 2).reshape(len(x), 6, 16))
        return self.head(x + self.down(nn.functional.gelu(self.up(self.norm2(x))))).mean(1)


class Recurrent(nn.Module):
    """An LSTM between linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.lstm = nn.Linear(8, 16), nn.LSTM(16, 16, batch_first=True)
        self.hidden, self.head = nn.Linear(16, 24), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(self.lstm(self.first(x[:, 0]).relu())[0][:, -1]).relu())


def loss_on(x: Tensor) -> Callable[[nn.Module], Tensor]:
    return lambda net: net(x).square().mean()


def batch() -> Tensor:
    return torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("kind", "prunable", "left_out"),
    [
        (Residual, {"two", "one"}, {"head": "3 channels"}),
        (Mobile, {"depth"}, {"head": "3 channels"}),
        (Attention, {"up"}, {"qkv": ""}),
        (Recurrent, {"hidden"}, {"head": "3 channels"}),
    ],
)
def test_awkward_modules(kind: type[nn.Module], prunable: set[str], left_out: dict[str, str]) -> None:
    """What can go goes, what cannot stays with a reason, and the smaller module computes what zeros would."""
    torch.manual_seed(0)
    net, x = kind().eval(), batch()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    channels = Channels(net, loss_on(x), round_to=4).find()
    assert prunable <= channels.scores.keys()
    for name, reason in left_out.items():
        assert reason in channels.left_out[name]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    chosen = channels.choose(0.5)
    assert all((len(channels.scores[name]) - len(gone)) % 4 == 0 for name, gone in chosen.items())
    cut = channels.cut(chosen)
    cut.zero(net)
    expected = net(x)
    weights = sum(p.numel() for p in net.parameters())
    cut.apply(net)
    torch.testing.assert_close(net(x), expected, rtol=1e-5, atol=1e-6)
    assert sum(p.numel() for p in net.parameters()) < weights
    fresh = kind().eval()
    reshape(fresh, shapes_of(net))
    fresh.load_state_dict(net.state_dict())
    assert torch.equal(fresh(x), net(x))
    assert str(fresh) == str(net)


def test_the_slices_by_hand() -> None:
    """Convolution, batch norm, flatten, linear: 4 positions of the linear layer belong to each channel."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 7), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    cut = Channels(net, loss_on(batch()), round_to=1).cut({"0": [1, 2]})
    before = {name: value.clone() for name, value in net.state_dict().items()}
    cut.apply(net)
    columns = [0, 1, 2, 3, 12, 13, 14, 15]
    assert torch.equal(net[0].weight, before["0.weight"][[0, 3]])
    assert torch.equal(net[1].running_var, before["1.running_var"][[0, 3]])
    assert torch.equal(net[4].weight, before["4.weight"][:, columns])
    assert (net[0].out_channels, net[1].num_features, net[4].in_features, net[4].out_features) == (2, 2, 8, 2)


def test_a_group_that_would_lose_a_whole_tensor_stays() -> None:
    """A fused projection that is chunked: few of its channels could go, nearly all would leave nothing of a layer."""
    from recipes.language_model.networks import Decoder

    torch.manual_seed(0)
    net, tokens = Decoder(32, 32, 2, 2, 8).eval(), torch.randint(0, 32, (2, 8))
    channels = Channels(net, lambda net: net(tokens).square().mean()).find()
    assert channels.scores.keys() == {"blocks.0.widen", "blocks.1.widen"}
    assert "nothing would be left of a tensor" in channels.left_out["blocks.0.attention.qkv"]


def test_the_lowest_norms_go() -> None:
    net = nn.Sequential(nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, 2, bias=False))
    scale = torch.tensor([5.0, 1.0, 4.0, 8.0, 2.0, 7.0, 3.0, 6.0])
    net[0].weight.data = scale[:, None].expand(8, 4).clone()
    net[2].weight.data = scale.expand(2, 8).clone()
    channels = Channels(net, lambda net: net(torch.ones(3, 4)).sum(), round_to=2).find()
    assert channels.choose(0.5) == {"0": [1, 2, 4, 6]}


def test_optimizer_state_is_cut_alike_and_parameters_stay() -> None:
    layer = nn.Linear(4, 3)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.randn(2, 4)).sum().backward()
    optimizer.step()
    weight, moment = layer.weight, optimizer.state[layer.weight]["exp_avg"].clone()
    Cut({"weight": {0: torch.tensor([0, 2])}, "bias": {0: torch.tensor([0, 2])}}).apply(layer, [optimizer])
    assert layer.weight is weight
    assert torch.equal(optimizer.state[weight]["exp_avg"], moment[[0, 2]])
    layer(torch.randn(2, 4)).sum().backward()
    optimizer.step()


def test_a_graph_of_before_the_cut_may_live_on() -> None:
    """Somebody has kept the loss of an earlier step: the next backward is that of the small layer all the same."""
    layer, x = nn.Linear(4, 3), torch.ones(2, 4)
    kept = layer(x).sum()
    Cut({"weight": {0: torch.tensor([0, 2])}, "bias": {0: torch.tensor([0, 2])}}).apply(layer)
    assert layer.weight.dtype == torch.float32
    layer(x).sum().backward()
    assert layer.weight.grad.tolist() == [[2.0] * 4] * 2
    assert kept.requires_grad


def test_targets_out_of_reach() -> None:
    net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    channels = Channels(net, lambda net: net(torch.ones(3, 4)).sum()).find()
    with pytest.raises(ValueError, match=r"target=0.1 cannot be met: .* it is 0.5\. Left out: 2: 3 channels"):
        meet(channels, 0.1, lambda cut: 0.5)
    stuck = Channels(net, lambda net: net(torch.ones(3, 4)).sum(), ignore=["0"]).find()
    with pytest.raises(ValueError, match=r"no group of channels can be cut; left out: .*0: ignored by '0'"):
        meet(stuck, 0.5, lambda cut: 0.5)


def fit(ns: ModuleType, quiet: dict[str, Any], callbacks: list[Any], module: Any, **arguments: Any) -> Any:
    ckpt_path = arguments.pop("ckpt_path", None)
    torch.manual_seed(11)
    trainer = ns.Trainer(**{**quiet, "max_epochs": 2, **arguments}, callbacks=callbacks)
    trainer.fit(module, images(), images(8, shuffle=False), ckpt_path=ckpt_path)
    return trainer


def with_dead_channels(pl: ModuleType) -> Any:
    """The plain module without dropout, two channels of each convolution dead: nothing enters, nothing leaves."""
    module = make("plain", pl)
    module.net[3].p = 0.0
    with torch.no_grad():
        for tensor in (module.net[0].weight, module.net[1].weight, module.net[1].bias):
            tensor[[2, 5]] = 0
        module.net[4].weight[:, [2, 5]] = 0
        module.net[4].weight[[1, 6]] = 0
        module.net[4].bias[[1, 6]] = 0
        module.net[7].weight.view(3, 8, 16)[:, [1, 6]] = 0
    return module


def test_dead_channels_leave_without_a_bump(pl: ModuleType, quiet: dict[str, Any]) -> None:
    """Losses and all further updates, of Adam with its state, are those of the run that keeps the dead channels."""
    dense, cut = with_dead_channels(pl), with_dead_channels(pl)
    fit(pl, quiet, [], dense)
    left = sum(p.numel() for p in cut.parameters())
    gone = 2 * (9 + 2) + 2 * 72 + 2 * 6 * 9 + 2 + 3 * 2 * 16
    pruning = lp.ChannelPruning((left - gone) / left + 1e-6, measure="parameters", round_to=2)
    fit(pl, quiet, [pruning], cut)
    assert sum(p.numel() for p in cut.parameters()) == left - gone
    assert cut.losses == pytest.approx(dense.losses, rel=1e-5)
    rows, outs = [0, 1, 3, 4, 6, 7], [0, 2, 3, 4, 5, 7]
    torch.testing.assert_close(cut.net[4].weight, dense.net[4].weight[outs][:, rows], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        cut.net[7].weight, dense.net[7].weight.view(3, 8, 16)[:, outs].flatten(1), rtol=1e-4, atol=1e-6
    )


def test_checkpoints_carry_the_shapes(ns: ModuleType, quiet: dict[str, Any], tmp_path: Path) -> None:
    """``test`` and ``predict`` with ``ckpt_path``, ``load_pruned`` here and in a fresh process: bit-equal outputs."""
    module = make("plain", ns)
    trainer = fit(ns, quiet, [lp.ChannelPruning(0.6, round_to=2)], module)
    trainer.save_checkpoint(tmp_path / "c.ckpt")
    x = images(8, shuffle=False)
    expected = torch.cat(trainer.predict(module, x))
    again = ns.Trainer(**quiet, callbacks=[lp.ChannelPruning(0.5)])
    predicted = again.predict(make("plain", ns), x, ckpt_path=tmp_path / "c.ckpt")
    assert torch.equal(torch.cat(predicted), expected)
    loaded = lp.load_pruned(make("plain", ns), tmp_path / "c.ckpt").eval()
    assert torch.equal(loaded(next(iter(x))[0]), expected[:4])
    torch.save(expected[:4], tmp_path / "expected.pt")
    if ns.__name__ == "lightning.pytorch":
        code = (
            "import torch, lightning.pytorch as ns, lightning_perf as lp; from tests.contract.modules import images, make; "
            f"net = lp.load_pruned(make('plain', ns), {str(tmp_path / 'c.ckpt')!r}).eval(); torch.set_num_threads(1); "
            "out = net(next(iter(images(8, shuffle=False)))[0]); "
            f"assert torch.equal(out, torch.load({str(tmp_path / 'expected.pt')!r}))"
        )
        subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_several_steps_and_masks(pl: ModuleType, quiet: dict[str, Any], tmp_path: Path) -> None:
    """Two cuts, zeros and a moving average in one run: exact zeros in the checkpoint of the small module."""
    module = make("plain", pl)
    pruning = lp.ChannelPruning(0.5, steps=2, at=0.25, round_to=2)
    callbacks = [lp.OptimizerFactory(ema=0.9), pruning, lp.MagnitudePruning(0.5, start=0.0, end=0.9)]
    trainer = fit(pl, quiet, callbacks, module, max_epochs=4)
    assert sum("macs cut from" in line for line in pruning.messages) == 2
    trainer.save_checkpoint(tmp_path / "c.ckpt")
    found = lp.sparsity(lp.load_pruned(make("plain", pl), tmp_path / "c.ckpt"))
    assert found.total == pytest.approx(0.5, abs=1 / found.weights)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": 1.0}, "target=1.0 must be the share of macs that is left"),
        ({"target": 0.5, "measure": "flops"}, "measure='flops' is unknown"),
        ({"target": 0.5, "at": 1.0}, "at=1.0 must be a fraction of the run"),
        ({"target": 0.5, "steps": 0}, "steps=0 must be a whole number"),
        ({"target": 0.5, "round_to": True}, "round_to=True must be a whole number"),
        ({"target": 0.5, "regularize": -1e-4}, "regularize=-0.0001 must be a number of at least 0"),
        ({"target": 0.5, "regularize": float("nan")}, "regularize=nan must be a number of at least 0"),
        ({"target": 0.5, "regularize": 1e-4, "at": 0.0}, "regularize=0.0001 means nothing with at=0.0"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lp.ChannelPruning(**arguments)


def test_bad_runs(pl: ModuleType, quiet: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"needs 1 epochs that begin at 50% of the run or later, and of max_epochs=1"):
        fit(pl, quiet, [lp.ChannelPruning(0.5)], make("plain", pl), max_epochs=1)
    with pytest.raises(ValueError, match="no group of channels can be cut"):
        fit(pl, quiet, [lp.ChannelPruning(0.5)], make("plain", pl))
    compiled = make("plain", pl)
    compiled.net = torch.compile(compiled.net, backend="eager")
    with pytest.raises(MisconfigurationException, match="is compiled for its shapes"):
        fit(pl, quiet, [lp.ChannelPruning(0.5, round_to=2)], compiled)
    trainer = fit(pl, quiet, [], make("plain", pl))
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    with pytest.raises(ValueError, match="holds no shapes: it was saved without ChannelPruning"):
        lp.load_pruned(make("plain", pl), tmp_path / "plain.ckpt")
    trainer = fit(pl, quiet, [lp.ChannelPruning(0.6, round_to=2)], make("plain", pl))
    trainer.save_checkpoint(tmp_path / "c.ckpt")
    with pytest.raises(ValueError, match="the pruned shapes are those of another module"):
        lp.load_pruned(nn.Linear(2, 2), tmp_path / "c.ckpt")
