"""The pull before a cut: gradients by hand and by autograd of the formula, whoever steps; and none at 0.0."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lightning_perf as lp
from lightning_perf.pruning.callback_regularize import Pull
from lightning_perf.pruning.channels import Channels
from lightning_perf.pruning.lasso import GroupLasso
from tests.contract.modules import images, make
from tests.pruning.test_channels import Residual, batch, loss_on

pytest.importorskip("torch_pruning", reason="needs torch-pruning (extra prune)")


def test_the_gradient_by_hand() -> None:
    """Channel 0 has the weights 1, 2, the bias 2 and 4 behind it: norm 5. Channel 1 is zero. The last layer's bias stays."""
    net = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 2.0], [0.0, 0.0], [3.0, 0.0], [0.0, -1.0]]))
        net[0].bias.copy_(torch.tensor([2.0, 0.0, 0.0, 0.0]))
        net[2].weight.copy_(torch.tensor([[4.0, 0.0, -4.0, 0.0]]))
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    net[2].weight.grad = None
    members = Channels(net, lambda net: net(torch.ones(3, 2)).square().sum(), round_to=2).find().members()
    GroupLasso(0.5, dict(net.named_parameters()), members).add_to(net.parameters())
    torch.testing.assert_close(net[0].weight.grad, 1 + torch.tensor([[0.1, 0.2], [0.0, 0.0], [0.3, 0.0], [0.0, -0.5]]))
    torch.testing.assert_close(net[0].bias.grad, 1 + torch.tensor([0.2, 0.0, 0.0, 0.0]))
    assert net[2].weight.grad is None
    assert net[2].bias.grad.tolist() == [1.0]


def test_a_weight_between_two_channels_is_pulled_by_both() -> None:
    """A shortcut: the stream of 16 channels, and the 12 inside of the branch; autograd of the formula, slice by slice."""
    torch.manual_seed(0)
    net = Residual()
    stream = [net.stem.weight, net.norm.weight, net.norm.bias, net.two.weight, net.again.weight, net.again.bias]
    norms = [
        torch.cat([*(one[c].flatten() for one in stream), net.one.weight[:, c].flatten(), net.head.weight[:, c]]).norm()
        for c in range(16)
    ] + [
        torch.cat([net.one.weight[c].flatten(), net.one.bias[c, None], net.two.weight[:, c].flatten()]).norm()
        for c in range(12)
    ]
    (0.01 * torch.stack(norms).sum()).backward()
    expected = {name: parameter.grad for name, parameter in net.named_parameters()}
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    members = Channels(net, loss_on(batch()), round_to=4).find().members()
    GroupLasso(0.01, dict(net.named_parameters()), members).add_to(net.parameters())
    for name, parameter in net.named_parameters():
        want = torch.zeros_like(parameter) if expected[name] is None else expected[name]
        torch.testing.assert_close(parameter.grad, want, msg=lambda text, name=name: f"{name}: {text}")


def test_a_fused_step_under_a_scaler_pulls_as_much() -> None:
    """A fused step divides gradients by the scale itself, and what is added to them before."""
    ends = []
    for fused in (True, False):
        weight = nn.Parameter(torch.tensor([[3.0, 4.0]]))
        optimizer, scaler = torch.optim.SGD([weight], lr=1.0, fused=fused), torch.amp.GradScaler("cpu", init_scale=8.0)
        pull = Pull(0.5)
        pull._lasso = GroupLasso(0.5, {"weight": weight}, {"weight": {0: torch.tensor([1])}})
        optimizer.register_step_pre_hook(pull._before_step)
        scaler.scale(weight.sum()).backward()
        scaler.step(optimizer)
        ends.append(weight.tolist())
    assert ends[0] == ends[1] == [[pytest.approx(3 - 1 - 0.3), pytest.approx(4 - 1 - 0.4)]]


@pytest.fixture
def pl() -> ModuleType:
    import lightning.pytorch

    return lightning.pytorch


def fit(ns: ModuleType, quiet: dict[str, Any], pruning: lp.ChannelPruning | None, module: Any, **arguments: Any) -> Any:
    """Two epochs of six batches; the state at the end of each."""
    ckpt_path, others = arguments.pop("ckpt_path", None), arguments.pop("callbacks", [])
    states: list[dict[str, Tensor]] = []

    class Each(ns.Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            states.append({name: value.clone() for name, value in pl_module.state_dict().items()})

    torch.manual_seed(11)
    callbacks = [*([pruning] if pruning else []), Each(), *others]
    trainer = ns.Trainer(**{**quiet, "max_epochs": 2, **arguments}, callbacks=callbacks)
    trainer.fit(module, images(), images(8, shuffle=False), ckpt_path=ckpt_path)
    return states


def penalty(net: nn.Sequential) -> Tensor:
    """Both groups of the plain module: a convolution with its batch norm, and one whose channels fill 16 inputs each."""
    head = net[7].weight.view(3, 8, 16)
    first = [
        torch.cat(
            [net[0].weight[c].flatten(), net[1].weight[c, None], net[1].bias[c, None], net[4].weight[:, c].flatten()]
        )
        for c in range(8)
    ]
    second = [torch.cat([net[4].weight[c].flatten(), net[4].bias[c, None], head[:, c].flatten()]) for c in range(8)]
    return torch.stack([one.norm() for one in [*first, *second]]).sum()


@pytest.mark.parametrize("kind", ["plain", "manual", "two_optimizers", "raw_step"])
def test_a_fit_is_one_with_the_penalty_in_its_loss(kind: str, ns: ModuleType, quiet: dict[str, Any]) -> None:
    """Until the cut, and not afterwards; whether Lightning steps with a closure, the module by hand, or a raw optimizer."""
    base = type(make(kind, ns))

    class Stochastic(base):  # type: ignore[misc, valid-type]
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if kind != "raw_step":
                return super().training_step(batch, batch_idx)
            self.raw.zero_grad()  # as RawStep does, but for a backward that a trace can follow
            self.manual_backward(self.loss(batch)[0])
            return self.raw.step()

        def configure_optimizers(self) -> Any:
            if kind == "raw_step":
                return self.raw
            body, head = self.net[:-1].parameters(), self.net[-1].parameters()
            if kind == "two_optimizers":
                return torch.optim.SGD(body, lr=0.05), torch.optim.SGD(head, lr=0.05, momentum=0.9)
            return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)

    class Penalized(Stochastic):
        def loss(self, batch: Any) -> tuple[Tensor, Tensor]:
            loss, logits = super().loss(batch)
            before_the_cut = self.trainer.training and self.trainer.current_epoch == 0
            return (loss + 0.03 * penalty(self.net) if before_the_cut else loss), logits

    ends = []
    for made, regularize in ((Stochastic, 0.03), (Penalized, 0.0)):
        torch.manual_seed(3)
        ends.append(fit(ns, quiet, lp.ChannelPruning(0.6, round_to=2, regularize=regularize), made()))
    assert ends[0][1]["net.4.weight"].shape != ends[0][0]["net.4.weight"].shape
    for pulled, expected in zip(*ends, strict=True):
        for name in expected:
            torch.testing.assert_close(pulled[name], expected[name], rtol=1e-3, atol=5e-5)


def test_without_it_nothing_changes_before_the_cut(pl: ModuleType, quiet: dict[str, Any]) -> None:
    dense = fit(pl, quiet, None, make("plain", pl))[0]
    off = fit(pl, quiet, lp.ChannelPruning(0.6, round_to=2, regularize=0.0), make("plain", pl))[0]
    on = fit(pl, quiet, lp.ChannelPruning(0.6, round_to=2, regularize=1e-2), make("plain", pl))[0]
    assert all(torch.equal(off[name], dense[name]) for name in dense)
    assert not torch.equal(on["net.0.weight"], dense["net.0.weight"])


def test_resume_before_the_cut(pl: ModuleType, quiet: dict[str, Any], tmp_path: Path) -> None:
    """What is pulled travels in the checkpoint, and the run goes on bit for bit."""

    def run(**arguments: Any) -> Any:
        pruning = lp.ChannelPruning(0.6, round_to=2, at=0.6, regularize=1e-2)
        saver = pl.callbacks.ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
        settings = {**quiet, "enable_checkpointing": True}
        callbacks = [lp.ExactResume(), saver]
        return fit(pl, settings, pruning, make("plain", pl), max_epochs=3, callbacks=callbacks, **arguments)

    whole = run()
    checkpoint = torch.load(tmp_path / "epoch=0.ckpt", weights_only=True)
    saved = next(state for key, state in checkpoint["callbacks"].items() if key.startswith("ChannelPruning"))
    assert saved["members"]["net.1.weight"][0].tolist() in (list(range(1, 9)), list(range(9, 17)))
    again = run(ckpt_path=tmp_path / "epoch=0.ckpt")
    assert all(torch.equal(again[-1][name], whole[-1][name]) for name in whole[-1])


def test_nothing_to_pull(pl: ModuleType, quiet: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no group of channels can be cut"):
        fit(pl, quiet, lp.ChannelPruning(0.5, regularize=1e-3), make("plain", pl))
