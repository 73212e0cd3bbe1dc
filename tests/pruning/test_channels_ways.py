"""What the traced step does not reach: teachers, heads of other batches, of validation and of prediction."""

from __future__ import annotations

import copy
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lightning_perf as lp
from tests.contract.modules import images, make

pytest.importorskip("torch_pruning", reason="needs torch-pruning (extra prune)")


@pytest.fixture
def pl() -> ModuleType:
    import lightning.pytorch

    return lightning.pytorch


def with_methods(ns: ModuleType, **methods: Any) -> Any:
    """The plain module and a part of its own behind it, ``extra``, of which 24 channels can go whatever else holds."""
    module = make("plain", ns)
    base = type(module)

    def loss(self: Any, batch: Any) -> tuple[Tensor, Tensor]:
        logits = self.extra(self.net(batch[0]))
        return nn.functional.cross_entropy(logits, batch[1]), logits

    module.extra = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 3))
    module.__class__ = type("Own", (base,), {"loss": loss, **methods})
    return module


def fit(ns: ModuleType, quiet: dict[str, Any], module: Any, target: float = 0.97) -> lp.ChannelPruning:
    pruning = lp.ChannelPruning(target, measure="parameters", round_to=2)
    trainer = ns.Trainer(**{**quiet, "max_epochs": 2}, callbacks=[pruning])
    trainer.fit(module, images(), images(8, shuffle=False))
    trainer.validate(module, images(8, shuffle=False), verbose=False)
    trainer.predict(module, images(8, shuffle=False))
    return pruning


def assert_only_extra_is_cut(module: Any, pruning: lp.ChannelPruning, *words: str) -> None:
    assert (module.net[0].out_channels, module.net[4].out_channels) == (8, 8)
    assert module.extra[0].out_features < 32
    for word in words:
        assert word in pruning.left_out["net.0"]
        assert word in pruning.left_out["net.4"]


def follow(self: Any, *args: Any) -> None:
    with torch.no_grad():
        for one, other in zip(self.net.parameters(), self.teacher.parameters(), strict=True):
            other.mul_(0.9).add_(one, alpha=0.1)


def stepped_with_teacher(self: Any, epoch: int, batch_idx: int, optimizer: Any, closure: Any) -> None:
    for group in optimizer.param_groups:
        group["lr"] *= 0.9
    optimizer.step(closure=closure)
    follow(self)


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_before_zero_grad", "optimizer_step", "on_train_epoch_end"])
def test_a_teacher_that_the_module_keeps(hook: str, ns: ModuleType, quiet: dict[str, Any]) -> None:
    """A copy that is updated by pairs of parameters: what it is a copy of stays whole; nothing of the run is touched."""
    method = stepped_with_teacher if hook == "optimizer_step" else follow
    module = with_methods(ns, **{hook: method})
    module.teacher = copy.deepcopy(module.net).requires_grad_(False)
    pruning = fit(ns, quiet, module)
    assert_only_extra_is_cut(module, pruning, f"without its channels {hook}", "raises RuntimeError: The size of")
    optimizer = module.trainer.strategy.optimizers[0]
    if hook == "optimizer_step":
        assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 * 0.9**12)


def test_a_teacher_of_all_is_refused(pl: ModuleType, quiet: dict[str, Any]) -> None:
    """Where nothing is left to cut, the reason is in the message."""
    module = with_methods(pl, on_train_batch_end=follow)
    module.net = nn.Sequential(module.net, module.extra)
    module.extra = nn.Identity()
    module.teacher = copy.deepcopy(module.net).requires_grad_(False)
    with pytest.raises(ValueError, match=r"no group of channels can be cut.*on_train_batch_end of batch 0 raises"):
        fit(pl, quiet, module)


def test_a_head_of_every_other_batch(ns: ModuleType, quiet: dict[str, Any]) -> None:
    def training_step(self: Any, batch: Any, batch_idx: int) -> Tensor:
        if batch_idx % 2:
            return self.loss(batch)[0] + self.other(self.net[:4](batch[0])).square().mean()
        return self.loss(batch)[0]

    module = with_methods(ns, training_step=training_step)
    module.other = nn.Conv2d(8, 3, 3)
    pruning = fit(ns, quiet, module)
    assert (
        "without its channels training_step of batch 1 raises RuntimeError: Given groups=1" in pruning.left_out["net.0"]
    )
    assert module.net[0].out_channels == 8
    assert sum(p.numel() for p in (*module.net[4:].parameters(), *module.extra.parameters())) < 584 + 387 + 96 + 131


@pytest.mark.parametrize("step", ["validation_step", "test_step", "predict_step"])
def test_a_head_of_one_step(step: str, ns: ModuleType, quiet: dict[str, Any]) -> None:
    def stepped(self: Any, batch: Any, batch_idx: int) -> Tensor:
        return self.other(self.net[:6](batch[0])).mean(1)

    module = with_methods(ns, **{step: stepped})
    module.other = nn.Conv2d(8, 3, 3)
    pruning = fit(ns, quiet, module)
    assert f"without its channels {step} raises RuntimeError" in pruning.left_out["net.4"]
    assert module.net[4].out_channels == 8


def test_a_batch_for_validation_alone(ns: ModuleType, quiet: dict[str, Any]) -> None:
    """``validation_step`` does not take what training takes: it is tried on the first batch of its own loader."""

    class Own(torch.utils.data.Dataset):
        drawn = 0

        def __getitem__(self, index: int) -> Any:
            return {"x": torch.ones(1, 8, 8), "y": torch.rand(())}

        def __len__(self) -> int:
            return 4

    def validation_step(self: Any, batch: Any, batch_idx: int) -> None:
        self.other(self.net[:6](batch["x"])).mean()

    module = with_methods(ns, validation_step=validation_step)
    module.other = nn.Conv2d(8, 3, 3)
    pruning = lp.ChannelPruning(0.97, measure="parameters", round_to=2)
    trainer = ns.Trainer(**{**quiet, "max_epochs": 2}, callbacks=[pruning])
    trainer.fit(module, images(), torch.utils.data.DataLoader(Own(), batch_size=2))
    assert "validation_step of its own batch raises RuntimeError" in pruning.left_out["net.4"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (lambda self, x: self.net[:6](x), "predict_step gives tensors of other shapes without its channels"),
        (
            lambda self, x: self.net[:6](x).mean(1),
            "predict_step gives other numbers without its channels than with zeros",
        ),
    ],
)
def test_what_prediction_gives(given: Any, words: str, ns: ModuleType, quiet: dict[str, Any]) -> None:
    """Features that a user takes out of the module stay what they are."""
    module = with_methods(ns, predict_step=lambda self, batch, batch_idx: given(self, batch[0]))
    pruning = fit(ns, quiet, module)
    assert words in pruning.left_out["net.4"]
    assert module.net[4].out_channels == 8


def test_nothing_of_the_run_is_touched(ns: ModuleType, quiet: dict[str, Any], tmp_path: Any) -> None:
    """Hooks count, log and change rates on copies only; what raises anyway says nothing."""
    seen: list[str] = []

    def on_train_batch_end(self: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.count = getattr(self, "count", 0) + 1
        self.trainer.save_checkpoint(tmp_path / f"{self.trainer.global_step}-{self.count}.ckpt")
        self.trainer.should_stop |= self.count > self.trainer.global_step
        self.logger.log_metrics({"count": self.count})
        for group in self.optimizers().param_groups:
            group["lr"] *= 0.9

    def test_step(self: Any, batch: Any, batch_idx: int) -> None:
        raise FileNotFoundError("no labels here")

    class Logger(ns.loggers.CSVLogger):
        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            seen.extend(one for one in metrics if one == "count")

    module = with_methods(ns, on_train_batch_end=on_train_batch_end, test_step=test_step)
    pruning = lp.ChannelPruning(0.9, round_to=2)
    settings = {**quiet, "max_epochs": 2, "logger": Logger(tmp_path)}
    trainer = ns.Trainer(**settings, callbacks=[pruning])
    trainer.fit(module, images(), images(8, shuffle=False))
    assert any("cut from" in line for line in pruning.messages)
    assert module.count == 12
    names = sorted(path.name for path in tmp_path.glob("*.ckpt"))
    assert names == sorted(f"{step}-{step}.ckpt" for step in range(1, 13))
    assert seen == ["count"] * 12
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-2 * 0.9**12)
