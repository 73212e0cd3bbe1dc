"""The range test: what is read from a curve, by hand; on a Trainer, that nothing of it remains but the rate."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader

import lightning_perf as lp
from lightning_perf.host import MisconfigurationException
from lightning_perf.optim.range_test import growing_rates, has_diverged, smoothed, suggest
from tests.contract.modules import images, make


def test_growing_rates() -> None:
    assert growing_rates(1e-3, 1.0, 4) == pytest.approx([1e-3, 1e-2, 1e-1, 1.0])
    assert len(growing_rates()) == 50
    for low, high, points in ((0.0, 1.0, 5), (1.0, 1.0, 5), (1.0, 2.0, 1), (1.0, float("inf"), 5)):
        with pytest.raises(ValueError, match="two points at least"):
            growing_rates(low, high, points)


def test_smoothed_by_hand() -> None:
    assert smoothed([6.0, 0.0, 0.0, 0.0, 0.0, 6.0]) == pytest.approx([3.0, 12 / 8, 6 / 9, 6 / 9, 12 / 8, 3.0])
    assert smoothed([2.5]) == [2.5]


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([2.0] * 10 + [1.8, 1.6, 1.5], False),
        ([2.0] * 10 + [1.6, 3.1], False),  # best 1.6, fall 0.4: up to 3.2
        ([2.0] * 10 + [1.6, 3.3], True),
        ([-8.0] * 10 + [-8.4, -6.7], True),  # the same curve, ten lower
        ([2.0, 1.5] * 5 + [1.4, 3.3], False),  # best 1.4, fall 0.35, noise 0.5: up to 3.4
        ([2.0, 1.5] * 5 + [1.4, 3.5], True),
        ([9.0, 2.0], False),  # too early to tell
        ([2.0, float("inf")], True),
        ([float("nan")], True),
        ([1.0] * 20, False),
    ],
)
def test_has_diverged(losses: list[float], expected: bool) -> None:
    assert has_diverged(losses) is expected


def test_suggestion_by_hand() -> None:
    """A fall to one lowest point, at 21, and a rise: a quarter of the rate there, whatever is added to the loss."""
    rates = growing_rates(1e-6, 10.0, 36)
    losses = [3.0] * 5 + [3.0 - 0.125 * k for k in range(16)] + [1.0] + [1.0 + 0.125 * k for k in range(1, 15)]
    assert suggest(rates, losses) == rates[21] / 4
    assert suggest(rates, [loss - 7.0 for loss in losses]) == rates[21] / 4
    assert suggest(rates, [*losses[:30], float("nan"), *losses[31:]]) == rates[21] / 4
    assert suggest(rates, [*losses[:12], float("inf"), *losses[13:]]) == rates[11] / 4
    wiggly = [loss + 0.02 * (-1) ** index for index, loss in enumerate(losses)]
    assert suggest(rates, wiggly) == rates[21] / 4


def test_no_suggestion_without_a_fall() -> None:
    rates = growing_rates()
    torch.manual_seed(0)
    assert suggest(rates, [1.0] * 50) is None
    assert suggest(rates, [1.0 + 0.1 * k for k in range(50)]) is None
    assert suggest(rates, (2.0 + 0.3 * torch.randn(50)).tolist()) is None
    assert suggest(rates, [2.0, 1.0, 0.5]) is None
    assert suggest(rates, []) is None


class Watch:
    """Learning rates at every batch, and how often hooks of this callback were called."""

    def __init__(self, ns: ModuleType) -> None:
        rates: list[list[float]] = []
        calls: list[str] = []

        class Record(ns.Callback):
            def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
                rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])
                calls.append("batch")

            def on_train_start(self, trainer: Any, *_: Any) -> None:
                calls.append("start")

            def on_before_zero_grad(self, *_: Any) -> None:
                calls.append("zero")

        self.rates, self.calls, self.callback = rates, calls, Record()


def fit(
    ns: ModuleType,
    quiet: dict[str, Any],
    factory: lp.OptimizerFactory,
    configure: Callable[[Any], Any] | None = None,
    *,
    kind: str = "plain",
    **arguments: Any,
) -> tuple[Any, Any, Watch]:
    base = type(make(kind, ns))
    own = {"configure_optimizers": lambda self: configure(self)} if configure is not None else {}
    torch.manual_seed(3)
    module = arguments.pop("module", None) or type("Own", (base,), own)()
    torch.manual_seed(11)
    watch, ckpt_path, train = Watch(ns), arguments.pop("ckpt_path", None), arguments.pop("train", None)
    extra = arguments.pop("callbacks", [])
    trainer = ns.Trainer(**{**quiet, "max_epochs": 2, **arguments}, callbacks=[factory, watch.callback, *extra])
    trainer.fit(module, train if train is not None else images(), images(8, shuffle=False), ckpt_path=ckpt_path)
    return trainer, module, watch


def found(factory: lp.OptimizerFactory) -> float:
    (line,) = [line for line in factory.messages if "range test" in line]
    match = re.search(r"pass lr=([\d.e-]+) to", line)
    assert match is not None, line
    return float(match[1])


def two_groups(module: Any) -> torch.optim.Optimizer:
    head = list(module.net[-1].parameters())
    return torch.optim.Adam([{"params": module.net[:-1].parameters()}, {"params": head, "lr": 3e-3}], lr=1e-2)


def scheduled(module: Any) -> Any:
    optimizer = two_groups(module)
    return [optimizer], [{"scheduler": lr_scheduler.CosineAnnealingLR(optimizer, 12), "interval": "step"}]


def floored(module: Any) -> Any:
    optimizer = two_groups(module)
    return [optimizer], [{"scheduler": lr_scheduler.CosineAnnealingLR(optimizer, 12, eta_min=7e-4), "interval": "step"}]


def falling(module: Any) -> Any:
    optimizer = two_groups(module)
    scheduler = lr_scheduler.LambdaLR(optimizer, lambda step: (12 - step) / 12)
    return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def one_cycle(module: Any) -> Any:
    optimizer = two_groups(module)
    scheduler = lr_scheduler.OneCycleLR(optimizer, max_lr=[1e-2, 3e-3], total_steps=12)
    return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


CASES: dict[str, tuple[dict[str, Any], Any, dict[str, Any]]] = {
    "named": ({"optimizer": "adamw"}, None, {}),
    "groups": ({"optimizer": "sgd", "groups": {"net.4.bias": {"lr": 1e-5}}}, two_groups, {}),
    "kept scheduler": ({"optimizer": "nadam"}, scheduled, {}),
    "kept floor": ({"optimizer": "nadam"}, floored, {}),
    "kept lambda": ({"optimizer": "nadam"}, falling, {}),
    "own with lambda": ({}, falling, {}),
    "kept one_cycle": ({"optimizer": "adamw"}, one_cycle, {}),
    "our schedule": ({"optimizer": "adamw", "schedule": "warmup_cosine", "warmup": 2}, scheduled, {}),
    "ema": ({"optimizer": "adamw", "ema": 0.9}, None, {}),
    "accumulation": ({"optimizer": "adamw"}, None, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}),
    "bf16": ({"optimizer": "adamw"}, None, {"precision": "bf16-mixed", "gradient_clip_val": 0.1}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("error:Detected call of:UserWarning", "error:Seems like:UserWarning")
def test_the_fit_is_that_of_the_rate_given_by_hand(case: str, ns: ModuleType, quiet: dict[str, Any]) -> None:
    """Bit for bit: shuffling, dropout, batch norm, groups, schedulers, averages."""
    arguments, configure, settings = CASES[case]
    auto = lp.OptimizerFactory(lr="auto", **arguments)
    _, module, watch = fit(ns, quiet, auto, configure, **settings)
    if not arguments:
        assert [rates[0] for rates in watch.rates] == [found(auto) * ((12 - step) / 12) for step in range(12)]
        return
    by_hand = lp.OptimizerFactory(lr=found(auto), **arguments)
    _, other, plain = fit(ns, quiet, by_hand, configure, **settings)
    assert watch.rates == plain.rates
    assert watch.calls == plain.calls
    assert module.losses == other.losses
    for key, value in module.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


@pytest.mark.parametrize("schedule", ["keep", "warmup_linear"])
def test_the_users_own_optimizer(schedule: str, ns: ModuleType, quiet: dict[str, Any]) -> None:
    """Class, groups and ratio are the module's; only the rate is ours."""
    auto = lp.OptimizerFactory(lr="auto", schedule=schedule)
    trainer, module, watch = fit(ns, quiet, auto, two_groups)
    lr = found(auto)
    assert type(trainer.optimizers[0]).__name__ == "Adam"

    def by_hand(module: Any) -> Any:
        optimizer = two_groups(module)
        optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = lr, lr * (3e-3 / 1e-2)
        return optimizer

    _, other, plain = fit(ns, quiet, lp.OptimizerFactory(schedule=schedule), by_hand)
    assert watch.rates == plain.rates
    assert module.losses == other.losses


def test_it_is_a_good_rate(quiet: dict[str, Any]) -> None:
    """From a rate ten thousand times too small, the loss after two epochs is far below."""
    import lightning.pytorch as ns

    def timid(module: Any) -> Any:
        return torch.optim.Adam(module.parameters(), lr=1e-6)

    _, module, _ = fit(ns, quiet, lp.OptimizerFactory(lr="auto"), timid, max_epochs=8)
    _, plain, _ = fit(ns, quiet, lp.OptimizerFactory(), timid, max_epochs=8)
    assert sum(module.losses[-6:]) < 0.5 * sum(plain.losses[-6:])


@pytest.mark.parametrize("row", lp.list_optimizers(), ids=lambda row: row.name)
def test_every_optimizer_of_the_registry(row: Any, quiet: dict[str, Any]) -> None:
    """Each can be copied and tried, or is refused when the callback is made."""
    import lightning.pytorch as ns

    if row.lr_free or hasattr(row.load(), "evaluation_weights"):
        with pytest.raises(ValueError, match="leave lr out"):
            lp.OptimizerFactory(row.name, lr="auto")
        return
    auto = lp.OptimizerFactory(row.name, lr="auto")
    if row.name == "sparse_adam":
        with pytest.raises((RuntimeError, ValueError), match=r"[Ss]parse|dense"):
            fit(ns, quiet, auto)
        return
    _, module, _ = fit(ns, quiet, auto, max_epochs=4)
    found(auto)
    assert sum(module.losses[-6:]) < sum(module.losses[:6])


def test_nothing_is_left_behind(ns: ModuleType, quiet: dict[str, Any]) -> None:
    """Between the last ``on_train_start`` and the first epoch: weights, buffers, metrics, attributes, state, draws."""
    logged: list[Any] = []
    from lightning_perf.host import capture_rng

    class Log(ns.loggers.logger.DummyLogger):
        def log_metrics(self, *args: Any, **kwargs: Any) -> None:
            logged.append((args, kwargs))

        @property
        def experiment(self) -> Any:
            logged.append("experiment")
            return super().experiment

    def snapshot(trainer: Any, module: Any) -> dict[str, Any]:
        rng = capture_rng()
        loop = trainer.fit_loop
        return {
            "weights": [value.clone() for value in module.state_dict().values()],
            "gradients": [p.grad for p in module.parameters()],
            "metric": [module.acc.tp.clone(), module.acc._update_count],
            "losses": list(module.losses),
            "rng": [rng["torch"], rng["numpy"][1], repr(rng["python"])],
            "loader": [g.get_state() for g in (train.generator,)],
            "optimizer": len(trainer.optimizers[0].state),
            "loops": repr(loop.state_dict()),
            "loggers": [id(logger) for logger in trainer.loggers],
            "callbacks": [id(callback) for callback in trainer.callbacks],
            "metrics": dict(trainer.callback_metrics),
            "mode": module.training,
            "names": sorted(vars(module)),
            "flags": torch.is_grad_enabled(),
            "logged": len(logged),
        }

    taken: list[dict[str, Any]] = []

    class Snap(ns.Callback):
        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            taken.append(snapshot(trainer, module))

    base = type(make("plain", ns))

    class Talkative(base):  # type: ignore[misc, valid-type]
        steps = 0

        def on_train_start(self) -> None:
            taken.append(snapshot(self.trainer, self))

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.steps += 1
            torch.rand(1)
            self.logger.experiment.add_scalar("x", 1.0)
            self.logger.log_metrics({"x": 1.0})
            return super().training_step(batch, batch_idx)

    train = DataLoader(images().dataset, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(3)
    module = Talkative()
    auto = lp.OptimizerFactory("adamw", lr="auto")
    fit(ns, quiet, auto, module=module, train=train, callbacks=[Snap()], logger=Log(), max_epochs=1)
    found(auto)
    before, after = taken
    assert module.steps == 6
    for key, value in before.items():
        if isinstance(value, list) and value and isinstance(value[0], torch.Tensor):
            same = all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(value, after[key]))  # noqa: B905
            assert same, key
        elif key != "loops":
            assert value == after[key], key
    assert after["losses"] == []
    # Of the loops, only the start of the epoch itself was counted in between.
    assert re.sub(r"'ready': 1", "'ready': 0", after["loops"]) == re.sub(r"'ready': 1", "'ready': 0", before["loops"])


def test_defect_lost_to_a_scheduler(ns: ModuleType, quiet: dict[str, Any]) -> None:
    """Lightning's suggestion lasts one step beside a scheduler (#21068): ours is the peak of the whole schedule."""
    auto = lp.OptimizerFactory("adamw", lr="auto")
    _, _, watch = fit(ns, quiet, auto, scheduled)
    factor = [(1 + torch.cos(torch.tensor(torch.pi * k / 12))).item() / 2 for k in range(12)]
    assert [rates[0] for rates in watch.rates] == pytest.approx([found(auto) * f for f in factor], rel=1e-5)


def test_defect_groups_flattened(ns: ModuleType, quiet: dict[str, Any]) -> None:
    """Lightning gives every group the same rate: ours keeps the ratio of 0.3."""
    auto = lp.OptimizerFactory(lr="auto")
    _, _, watch = fit(ns, quiet, auto, two_groups)
    assert watch.rates[0] == pytest.approx([found(auto), 0.3 * found(auto)], rel=1e-9)


def test_defect_resume_restarts(ns: ModuleType, quiet: dict[str, Any], tmp_path: Path) -> None:
    """``fit(ckpt_path)`` with Lightning's finder starts at step 0 again: ours resumes, with the rate, without a test."""
    first = lp.OptimizerFactory("adamw", lr="auto", schedule="warmup_linear")
    trainer, _, _ = fit(ns, quiet, first, max_epochs=4, max_steps=12)
    trainer.save_checkpoint(tmp_path / "c.ckpt")
    again = lp.OptimizerFactory("adamw", lr="auto", schedule="warmup_linear")
    trainer, module, _ = fit(ns, quiet, again, max_epochs=4, ckpt_path=tmp_path / "c.ckpt")
    assert (trainer.global_step, trainer.current_epoch, len(module.losses)) == (24, 4, 12)
    assert trainer.optimizers[0].param_groups[0]["initial_lr"] == found(first)
    assert any("the learning rate is the checkpoint's; no range test" in line for line in again.messages)
    steps = {int(float(state["step"])) for state in trainer.optimizers[0].state.values()}
    assert steps == {24}


def test_defect_hyper_parameters_with_objects(ns: ModuleType, quiet: dict[str, Any]) -> None:
    """Lightning's finder reads its own checkpoint with ``weights_only=True`` and dies of them (#21757)."""
    base = type(make("plain", ns))

    class WithObjects(base):  # type: ignore[misc, valid-type]
        def __init__(self, thing: Any) -> None:
            super().__init__()
            self.save_hyperparameters()

    auto = lp.OptimizerFactory("adamw", lr="auto")
    fit(ns, quiet, auto, module=WithObjects(threading.Thread), max_epochs=1)
    found(auto)


def test_defect_hooks_are_off(ns: ModuleType, quiet: dict[str, Any]) -> None:
    """Lightning exchanges ``trainer.callbacks`` for its trial: ours calls no hook and keeps the list."""
    auto = lp.OptimizerFactory("adamw", lr="auto")
    trainer, _, watch = fit(ns, quiet, auto)
    assert watch.calls == ["start"] + ["batch", "zero"] * 12
    assert trainer.callbacks[0] is auto


@pytest.mark.parametrize("kind", ["manual", "two_optimizers", "raw_step"])
def test_manual_optimization_is_refused(kind: str, ns: ModuleType, quiet: dict[str, Any]) -> None:
    for factory in (lp.OptimizerFactory(lr="auto"), lp.OptimizerFactory("adamw", lr="auto")):
        with pytest.raises(MisconfigurationException, match=r"steps them by hand .*use OptimizerFactory\(\)"):
            fit(ns, quiet, factory, kind=kind)


def test_beside_lightnings_finder(ns: ModuleType, quiet: dict[str, Any]) -> None:
    """Its trial run is none of ours; our rate comes last."""
    base = type(make("plain", ns))

    class Tunable(base):  # type: ignore[misc, valid-type]
        lr = 1e-2

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=self.lr)

    auto = lp.OptimizerFactory(lr="auto")
    finder = ns.callbacks.LearningRateFinder(num_training_steps=12)
    trainer, _, watch = fit(ns, quiet, auto, module=Tunable(), callbacks=[finder])
    assert trainer.global_step == 12
    assert watch.rates == [[found(auto)]] * 12


def test_exception_in_the_trial(ns: ModuleType, quiet: dict[str, Any]) -> None:
    """It comes through; loggers are back, and the module fits without us."""
    base = type(make("plain", ns))

    class Fragile(base):  # type: ignore[misc, valid-type]
        limit = 3

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if batch_idx == self.limit:
                raise RuntimeError("planted")
            return super().training_step(batch, batch_idx)

    module, logger = Fragile(), ns.loggers.logger.DummyLogger()
    trainer = ns.Trainer(**{**quiet, "logger": logger}, max_epochs=1, callbacks=[lp.OptimizerFactory(lr="auto")])
    with pytest.raises(RuntimeError, match="planted"):
        trainer.fit(module, images())
    assert trainer.loggers == [logger]
    assert "on_train_start" not in vars(trainer.strategy)
    module.limit = -1
    trainer.fit(module, images())
    assert trainer.global_step == 6


def test_what_cannot_be_tried_is_refused(ns: ModuleType, quiet: dict[str, Any]) -> None:
    base = type(make("plain", ns))
    auto = lp.OptimizerFactory(lr="auto")

    class Locked(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__()
            self.lock = threading.Lock()

    class Iterating(base):  # type: ignore[misc, valid-type]
        def training_step(self, dataloader_iter: Any) -> Any:
            raise AssertionError("not reached")

    with pytest.raises(MisconfigurationException, match=r"Locked cannot be copied .*pass a learning rate as a number"):
        fit(ns, quiet, auto, module=Locked())
    with pytest.raises(MisconfigurationException, match="takes its batches from dataloader_iter"):
        fit(ns, quiet, auto, module=Iterating())
    with pytest.raises(ValueError, match="generator can be read only once"):
        fit(ns, quiet, auto, train=(batch for batch in images()))
    with pytest.raises(MisconfigurationException, match="cannot test LBFGS"):
        fit(ns, quiet, auto, lambda module: torch.optim.LBFGS(module.parameters()))


def test_no_fall_keeps_the_rate(ns: ModuleType, quiet: dict[str, Any]) -> None:
    base = type(make("plain", ns))

    class Flat(base):  # type: ignore[misc, valid-type]
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return 0.0 * self(batch[0]).sum() + 1.0

    auto = lp.OptimizerFactory(lr="auto")
    _, _, watch = fit(ns, quiet, auto, module=Flat())
    assert watch.rates == [[1e-2]] * 12
    assert any("found no learning rate at which the loss falls" in line for line in auto.messages)


def test_skipped_batches_and_several_loaders(ns: ModuleType, quiet: dict[str, Any]) -> None:
    """A step that returns ``None`` now and then, a dictionary of loaders of different lengths, a limit of batches."""
    base = type(make("plain", ns))
    seen: set[float] = set()

    class Two(base):  # type: ignore[misc, valid-type]
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            assert set(batch) == {"a", "b"}
            seen.add(float(batch["a"][0].sum()))
            return None if batch_idx % 5 == 4 else {"loss": super().training_step(batch["a"], batch_idx)}

    loaders = {"a": images(shuffle=False), "b": images(8)}
    auto = lp.OptimizerFactory("adamw", lr="auto")
    trainer, _, _ = fit(ns, quiet, auto, module=Two(), train=loaders, limit_train_batches=4)
    found(auto)
    assert trainer.fit_loop.epoch_loop.batch_progress.total.completed == 8
    assert len(seen) == 4


def test_persistent_workers_keep_their_place(quiet: dict[str, Any]) -> None:
    """A DataLoader resets its persistent iterator when asked for a new one: not that of the run."""
    import lightning.pytorch as ns

    def loader() -> DataLoader:
        generator = torch.Generator().manual_seed(1)
        arguments: dict[str, Any] = {"num_workers": 1, "persistent_workers": True, "multiprocessing_context": "fork"}
        return DataLoader(images().dataset, batch_size=4, shuffle=True, generator=generator, **arguments)

    auto = lp.OptimizerFactory("adamw", lr="auto")
    _, module, _ = fit(ns, quiet, auto, train=loader())
    _, other, _ = fit(ns, quiet, lp.OptimizerFactory("adamw", lr=found(auto)), train=loader())
    assert len(module.losses) == 12
    assert module.losses == other.losses


def test_module_types_with_traps(ns: ModuleType, quiet: dict[str, Any]) -> None:
    """Tied weights, a parametrization, and a step that logs the rate of its own optimizer."""
    base = type(make("plain", ns))

    class Trap(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__()
            nn.utils.parametrizations.weight_norm(self.net[-1])
            self.again = self.net[4]

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("lr", self.optimizers().param_groups[0]["lr"])
            return super().training_step(batch, batch_idx)

    auto = lp.OptimizerFactory("adamw", lr="auto")
    fit(ns, quiet, auto, module=Trap())
    assert 0 < found(auto) < 10
