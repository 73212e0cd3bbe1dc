"""ChannelsLast: what it converts, what it leaves alone, and modules that call .view."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_perf as lp


def module_with(net: nn.Module, ns: ModuleType, forward: Any = None) -> Any:
    class Module(ns.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net
            self.formats: list[bool] = []

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            y = (forward or (lambda net, x: net(x)))(self.net, batch[0])
            weights = [m.weight for m in self.net.modules() if isinstance(m, nn.Conv2d)]
            self.formats.append(all(w.is_contiguous(memory_format=torch.channels_last) for w in weights))
            return y.square().mean()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.training_step(batch, batch_idx))

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    return Module()


def fit(module: Any, ns: ModuleType, quiet: dict[str, Any], callbacks: list[Any], shape: Any = (3, 6, 6)) -> Any:
    data = TensorDataset(torch.randn(8, *shape, generator=torch.Generator().manual_seed(0)))
    trainer = ns.Trainer(**quiet, max_epochs=2, callbacks=callbacks)
    trainer.fit(module, DataLoader(data, batch_size=4), DataLoader(data, batch_size=4))
    return trainer


def conv_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))


def test_converts_for_the_fit_and_puts_back(ns: ModuleType, quiet: dict[str, Any]) -> None:
    callback = lp.ChannelsLast()
    module = module_with(conv_net(), ns)
    identities = [id(p) for p in module.parameters()]
    fit(module, ns, quiet, [callback])
    assert module.formats
    assert all(module.formats)
    assert [id(p) for p in module.parameters()] == identities
    assert all(p.is_contiguous() for p in module.parameters())
    assert callback.messages[0] == "ChannelsLast: 2 convolutions stored channels-last."


def test_three_dimensions(ns: ModuleType, quiet: dict[str, Any]) -> None:
    net = nn.Sequential(nn.Conv3d(2, 4, 3), nn.ConvTranspose3d(4, 4, 3))
    seen: list[bool] = []

    def forward(net: Any, x: torch.Tensor) -> torch.Tensor:
        seen.append(net[0].weight.is_contiguous(memory_format=torch.channels_last_3d))
        return net(x)

    fit(module_with(net, ns, forward), ns, quiet, [lp.ChannelsLast()], (2, 5, 5, 5))
    assert seen
    assert all(seen)


def test_nothing_to_do_is_said(ns: ModuleType, quiet: dict[str, Any]) -> None:
    callback = lp.ChannelsLast()
    fit(module_with(nn.Sequential(nn.Flatten(), nn.Linear(108, 2)), ns), ns, quiet, [callback])
    assert callback.messages == ["ChannelsLast: Module has no 2-D or 3-D convolution; nothing was changed."]


@pytest.mark.parametrize(
    "flatten",
    [lambda y: y.view(y.size(0), -1), lambda y: y.view(-1, 4), lambda y: y.view_as(torch.empty(y.size(0), 32))],
    ids=["rows", "columns", "view_as"],
)
@pytest.mark.parametrize("fused", [True, False])
def test_a_module_that_calls_view_trains_as_without(
    flatten: Any, fused: bool, ns: ModuleType, quiet: dict[str, Any]
) -> None:
    """``.view`` raises on a channels-last activation: every step is computed right, the layout goes back, it is said."""

    def forward(net: Any, x: torch.Tensor) -> torch.Tensor:
        return flatten(net(x)).cumsum(-1)  # an order of elements that a wrong flattening would change

    callback = lp.ChannelsLast()
    module = module_with(conv_net(), ns, forward)
    fit(module, ns, quiet, [callback, lp.OptimizerFactory()] if fused else [callback])
    plain = module_with(conv_net(), ns, forward)
    fit(plain, ns, quiet, [])
    for left, right in zip(module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-6)
    assert sum("the layout was put back" in line for line in callback.messages) == 1
    assert not module.formats[-1]


def test_other_errors_of_the_first_step_are_the_users(ns: ModuleType, quiet: dict[str, Any]) -> None:
    module = module_with(conv_net(), ns, lambda net, x: net(x).view(7, 11))
    with pytest.raises(RuntimeError, match=r"shape '\[7, 11\]' is invalid"):
        fit(module, ns, quiet, [lp.ChannelsLast()])


def test_compiled_modules_are_left_to_inductor(ns: ModuleType, quiet: dict[str, Any]) -> None:
    net = conv_net()
    net[0].compile(backend="eager")
    callback = lp.ChannelsLast()
    fit(module_with(net, ns), ns, quiet, [callback])
    assert "Inductor chooses layouts itself" in callback.messages[0]


def test_a_contiguous_checkpoint_resumes_right(ns: ModuleType, quiet: dict[str, Any], tmp_path: Any) -> None:
    """Optimizer state saved contiguous meets channels-last weights: torch's fused kernel would mix up elements."""

    def run(callbacks: list[Any], ckpt: Any) -> Any:
        module = module_with(conv_net(), ns)
        data = DataLoader(TensorDataset(torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0))), 4)
        trainer = ns.Trainer(**quiet, max_epochs=2, callbacks=callbacks)
        trainer.fit(module, data, ckpt_path=ckpt)
        return module

    first = module_with(conv_net(), ns)
    data = DataLoader(TensorDataset(torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0))), 4)
    trainer = ns.Trainer(**quiet, max_epochs=1)
    trainer.fit(first, data)
    trainer.save_checkpoint(tmp_path / "c.ckpt")
    ours = run([lp.OptimizerFactory(), lp.ChannelsLast()], tmp_path / "c.ckpt")
    plain = run([], tmp_path / "c.ckpt")
    for left, right in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("where", ["resume", "validation"])
def test_an_optimizer_that_the_user_made_fused(
    where: str, ns: ModuleType, quiet: dict[str, Any], tmp_path: Any
) -> None:
    """``fused=True`` of the user's: state follows the layout of the weights, on resume and when the layout goes back."""

    def run(callbacks: list[Any], epochs: int, ckpt: Any = None) -> tuple[Any, Any]:
        module = module_with(conv_net(), ns)
        cls = type(module)
        cls.configure_optimizers = lambda self: torch.optim.AdamW(self.parameters(), lr=1e-2, fused=True)
        if where == "validation":
            cls.validation_step = lambda self, batch, i: self.log("v", self.net(batch[0]).view(4, -1).sum())
        data = DataLoader(TensorDataset(torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0))), 4)
        trainer = ns.Trainer(**{**quiet, "num_sanity_val_steps": 0}, max_epochs=epochs, callbacks=callbacks)
        trainer.fit(module, data, data, ckpt_path=ckpt)
        return trainer, module

    ckpt = None
    if where == "resume":
        run([], 1)[0].save_checkpoint(tmp_path / "c.ckpt")
        ckpt = tmp_path / "c.ckpt"
    for callbacks in ([lp.ChannelsLast()], lp.lossless()):
        ours, plain = run(callbacks, 3, ckpt)[1], run([], 3, ckpt)[1]
        for left, right in zip(ours.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-4)


def test_writing_through_a_view_is_stopped(ns: ModuleType, quiet: dict[str, Any]) -> None:
    """The write would reach a copy only: the first step ends with a message instead of a wrong loss."""

    def forward(net: Any, x: torch.Tensor) -> torch.Tensor:
        y = net(x)
        y.view(y.size(0), -1)[:, :20] = 0
        return y

    with pytest.raises(RuntimeError, match=r"writes through \.view.*leave ChannelsLast out"):
        fit(module_with(conv_net(), ns, forward), ns, quiet, [lp.ChannelsLast()])


def test_shared_storage_stays_shared(ns: ModuleType, quiet: dict[str, Any]) -> None:
    net = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3))
    net[1].weight.data = net[0].weight.data
    callback = lp.ChannelsLast()
    fit(module_with(net, ns), ns, quiet, [callback])
    assert net[0].weight.data_ptr() == net[1].weight.data_ptr()
    assert "2 convolutions share their storage" in callback.messages[0]


def test_lbfgs_flattens_gradients(ns: ModuleType, quiet: dict[str, Any]) -> None:
    """LBFGS calls ``.view`` on gradients inside its step: as without us."""

    def run(callbacks: list[Any]) -> Any:
        module = module_with(conv_net(), ns)
        type(module).configure_optimizers = lambda self: torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=2)
        fit(module, ns, quiet, callbacks)
        return module

    for left, right in zip(run(lp.lossless()).parameters(), run([]).parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-5)
