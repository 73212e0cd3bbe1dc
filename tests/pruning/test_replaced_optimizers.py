"""Optimizers that are set anew while the fit runs, and some that the Trainer never holds: followed like the first ones."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import lightning_perf as lp
from lightning_perf.optim.registry import build
from tests.contract.modules import images, make

TOTAL = 8 * 9 + 8 * 8 * 9 + 3 * 8 * 16  # weights of the plain module
PLACES = ("never", "epoch_start", "batch_start", "step", "in_place")


def replacing(ns: ModuleType, kind: str, where: str) -> Any:
    """A module that steps by plain SGD, which keeps no state, and makes itself a new one at the fourth batch or epoch 1."""
    base = type(make(kind, ns))

    class Replacing(base):  # type: ignore[misc, valid-type]
        made = 0

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.05)

        def renew(self, here: str) -> None:
            if where == here and not self.made:
                self.made += 1
                new = self.configure_optimizers()
                if where == "in_place":
                    self.trainer.strategy.optimizers[0] = new
                    self.trainer.strategy._lightning_optimizers[0]._optimizer = new
                elif where == "step":
                    self.trainer.optimizers = [new]
                else:
                    self.trainer.strategy.optimizers = [new]

        def on_train_epoch_start(self) -> None:
            if self.trainer.current_epoch == 1:
                self.renew("epoch_start")

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if batch_idx == 3:
                self.renew("batch_start")
                self.renew("in_place")

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if batch_idx == 3:
                self.renew("step")
            return super().training_step(batch, batch_idx)

    torch.manual_seed(3)
    return Replacing()


def fit(ns: ModuleType, quiet: dict[str, Any], module: Any, *callbacks: Any) -> Any:
    torch.manual_seed(11)
    trainer = ns.Trainer(**quiet, max_epochs=2, callbacks=list(callbacks))
    trainer.fit(module, images(), images(8, shuffle=False))
    return trainer


@pytest.mark.parametrize("kind", ["plain", "manual"])
@pytest.mark.parametrize("where", PLACES[1:])
def test_masks_and_scores_are_those_of_a_run_with_one_optimizer(
    kind: str, where: str, ns: ModuleType, quiet: dict[str, Any]
) -> None:
    """Bit for bit: every step is counted and held."""
    ends = []
    for place in ("never", where):
        module = replacing(ns, kind, place)
        pruning = lp.MagnitudePruning(0.5, criterion="movement", start=0.0, end=0.9)
        fit(ns, quiet, module, pruning)
        assert module.made == (place != "never")
        assert pruning.result.total == pytest.approx(0.5, abs=1 / TOTAL)
        ends.append(module.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_the_state_of_a_new_optimizer_is_held(ns: ModuleType, quiet: dict[str, Any]) -> None:
    base = type(make("plain", ns))

    class Renewed(base):  # type: ignore[misc, valid-type]
        def on_train_epoch_start(self) -> None:
            self.trainer.optimizers = [torch.optim.Adam(self.parameters(), lr=1e-2)]

        def on_train_batch_end(self, *_: Any) -> None:
            weight = self.net[4].weight
            state = self.trainer.optimizers[0].state[weight]
            held.append(bool((state["exp_avg"][weight == 0] == 0).all()) and int((weight == 0).sum()) > 0)

    held: list[bool] = []
    torch.manual_seed(3)
    fit(ns, quiet, Renewed(), lp.MagnitudePruning(0.5, schedule="one_shot", start=0.0))
    assert held[1:] == [True] * 11


def test_an_optimizer_that_the_trainer_never_holds(pl: ModuleType, quiet: dict[str, Any]) -> None:
    """Beside the Trainer's own, over the same weights: zeros stand right after its step, not at the end of the batch."""
    base = type(make("manual", pl))

    class Beside(base):  # type: ignore[misc, valid-type]
        def training_step(self, batch: Any, batch_idx: int) -> None:
            super().training_step(batch, batch_idx)
            before = [weight == 0 for weight in self.mine()]
            loss = self.loss(batch)[0]
            self.zero_grad()
            self.manual_backward(loss)
            torch.optim.SGD(self.parameters(), lr=0.1).step()
            after.append(all(bool((w[gone] == 0).all()) for w, gone in zip(self.mine(), before, strict=True)))

        def mine(self) -> list[Tensor]:
            return [self.net[index].weight for index in (0, 4, 7)]

    after: list[bool] = []
    torch.manual_seed(3)
    module = Beside()
    fit(pl, quiet, module, lp.MagnitudePruning(0.5, schedule="one_shot", start=0.0))
    assert after == [True] * 12
    assert sum(int((weight == 0).sum()) for weight in module.mine()) == TOTAL // 2


@pytest.mark.parametrize("where", ["epoch_start", "batch_start", "step"])
def test_a_parameter_that_is_made_anew(where: str, ns: ModuleType, quiet: dict[str, Any]) -> None:
    """After the masks are final: they hold for what has the name of a weight, in whatever object."""
    base = type(make("plain", ns))

    class Anew(base):  # type: ignore[misc, valid-type]
        def renew(self, here: str) -> None:
            if here == where and self.trainer.current_epoch == 1:
                self.net[4].weight = torch.nn.Parameter(self.net[4].weight.detach() + 0.1)
                self.trainer.optimizers = [torch.optim.Adam(self.parameters(), lr=1e-2)]

        def on_train_epoch_start(self) -> None:
            self.renew("epoch_start")

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            self.renew("batch_start" if batch_idx == 2 else "")

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.renew("step" if batch_idx == 2 else "")
            return super().training_step(batch, batch_idx)

        def on_train_batch_end(self, *_: Any) -> None:
            counts.append(sum(int((self.net[index].weight == 0).sum()) for index in (0, 4, 7)))
            weight = self.net[4].weight
            states = [v for v in self.trainer.optimizers[0].state.get(weight, {}).values() if v.shape == weight.shape]
            assert all(bool((value[weight == 0] == 0).all()) for value in states)

    counts: list[int] = []
    torch.manual_seed(3)
    pruning = lp.MagnitudePruning(0.5, schedule="one_shot", start=0.0)
    fit(ns, quiet, Anew(), pruning)
    assert counts == [TOTAL // 2] * 12
    assert pruning.result.total == 0.5


def test_a_parameter_of_another_shape_is_named(pl: ModuleType, quiet: dict[str, Any]) -> None:
    base = type(make("plain", pl))

    class Grown(base):  # type: ignore[misc, valid-type]
        def on_train_epoch_start(self) -> None:
            if self.trainer.current_epoch == 1:
                self.net[7].weight = torch.nn.Parameter(torch.ones(5, 128))

    torch.manual_seed(3)
    with pytest.raises(
        ValueError, match=r"net\.7\.weight is of shape \(5, 128\) now, and its mask of \(3, 128\); leave "
    ):
        fit(pl, quiet, Grown(), lp.MagnitudePruning(0.5, schedule="one_shot", start=0.0))


@pytest.mark.parametrize("where", PLACES[1:])
def test_channels_are_pulled_as_by_one_optimizer(where: str, pl: ModuleType, quiet: dict[str, Any]) -> None:
    ends = []
    for place in ("never", where):
        module = replacing(pl, "plain", place)
        fit(pl, quiet, module, lp.ChannelPruning(0.6, round_to=2, steps=2, at=0.0, regularize=0.03))
        ends.append(module.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


@pytest.mark.parametrize("where", PLACES[1:])
def test_a_moving_average_goes_on(where: str, pl: ModuleType, quiet: dict[str, Any]) -> None:
    ends = []
    for place in ("never", where):
        module = replacing(pl, "plain", place)
        fit(pl, quiet, module, lp.OptimizerFactory(ema=0.9))
        ends.append(module.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


@pytest.mark.parametrize("again", [False, True])
def test_an_average_ends_with_its_optimizer(again: bool, pl: ModuleType, quiet: dict[str, Any]) -> None:
    """What is evaluated afterwards is what the new optimizer says: its own average, or the weights that it trains."""
    base = type(make("plain", pl))

    class Renewed(base):  # type: ignore[misc, valid-type]
        def on_train_epoch_start(self) -> None:
            if self.trainer.current_epoch == 1:
                new = "schedule_free_sgd" if again else "sgd"
                self.trainer.optimizers = [build(new, self.parameters(), lr=0.05)]

        def on_train_batch_end(self, *_: Any) -> None:
            trained.append(self.net[4].weight.detach().clone())

        def on_validation_start(self) -> None:
            evaluated.append(self.net[4].weight.detach().clone())

    trained: list[Tensor] = []
    evaluated: list[Tensor] = []
    torch.manual_seed(3)
    fit(pl, quiet, Renewed(), lp.OptimizerFactory("auto", warmup=2))
    assert not torch.equal(evaluated[1], trained[5])
    assert torch.equal(evaluated[2], trained[11]) is not again


@pytest.fixture
def pl() -> ModuleType:
    import lightning.pytorch

    return lightning.pytorch
