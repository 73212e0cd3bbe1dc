"""OptimizerFactory("auto"): what it chooses, what it leaves out, where it falls back, what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

import lightning_perf as lp
from lightning_perf.host import MisconfigurationException
from lightning_perf.optim import rows
from lightning_perf.optim.registry import get_optimizer
from lightning_perf.optim.schedule_free import ScheduleFreeAdamW
from tests.contract.modules import images, make


def fit(
    ns: ModuleType, quiet: dict[str, Any], factory: lp.OptimizerFactory, kind: str = "plain", **arguments: Any
) -> tuple[Any, Any, list[list[float]]]:
    rates: list[list[float]] = []

    class Record(ns.Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    module = make(kind, ns)
    torch.manual_seed(11)
    train = arguments.pop("train", None)
    trainer = ns.Trainer(**{**quiet, "max_epochs": 2, **arguments}, callbacks=[factory, Record()])
    trainer.fit(module, train if train is not None else images(), images(8, shuffle=False))
    return trainer, module, rates


class Endless(IterableDataset):
    """A loader without length."""

    def __iter__(self) -> Iterator[Any]:
        yield from images().dataset


def test_schedule_free_at_a_fixed_rate(ns: ModuleType, quiet: dict[str, Any]) -> None:
    """The registry's rate throughout, inferred groups, the module's scheduler and frozen part as they should be."""
    auto = lp.OptimizerFactory("auto")
    trainer, module, rates = fit(ns, quiet, auto, "scheduled", max_epochs=10)
    (optimizer,) = trainer.optimizers
    assert isinstance(optimizer, ScheduleFreeAdamW)
    lr = get_optimizer("schedule_free_adamw").defaults["lr"]
    assert rates[0] == rates[-1]
    assert set(rates[0]) == {lr, lr * (1e-3 / 1e-2)}
    assert trainer.lr_scheduler_configs == []
    assert {group["warmup_steps"] for group in optimizer.param_groups} == {3}  # 5 % of 60 steps
    assert any("the module's LinearLR was left out" in line for line in auto.messages)
    assert any("a warm-up of 3 optimizer steps, no schedule" in line for line in auto.messages)
    assert {name for group in optimizer.param_groups for name in group["names"]} == {
        name for name, p in module.named_parameters() if p.requires_grad
    }
    assert sum(module.losses[-6:]) < 0.7 * sum(module.losses[:6])


@pytest.mark.parametrize(
    ("arguments", "settings", "steps"),
    [
        ({}, {"max_epochs": -1, "max_steps": 40}, 2),
        ({}, {"train": "endless", "max_epochs": 1}, 100),
        ({"warmup": 7}, {"train": "endless", "max_epochs": 1}, 7),
        ({"warmup": 0.5}, {"accumulate_grad_batches": 2}, 3),
        ({"options": {"warmup_steps": 4}}, {}, 4),
    ],
    ids=str,
)
def test_its_own_warm_up(
    arguments: dict[str, Any], settings: dict[str, Any], steps: int, ns: ModuleType, quiet: dict[str, Any]
) -> None:
    """A share of the run's optimizer steps; a fixed number where the run has no known length."""
    if settings.get("train") == "endless":
        settings = {**settings, "train": DataLoader(Endless(), batch_size=4)}
    trainer, _, _ = fit(ns, quiet, lp.OptimizerFactory("auto", **arguments), **settings)
    assert trainer.optimizers[0].param_groups[0]["warmup_steps"] == steps


@pytest.mark.parametrize("strategy", ["FSDPStrategy", "ModelParallelStrategy"])
def test_falls_back_where_weights_cannot_be_exchanged(strategy: str, ns: ModuleType, quiet: dict[str, Any]) -> None:
    """AdamW with warm-up and a linear fall over the module's own groups, and it says so."""
    base = ns.strategies.SingleDeviceStrategy
    fake = type(strategy, (base,), {"__module__": base.__module__})
    auto = lp.OptimizerFactory("auto", warmup=2)
    trainer, _, rates = fit(ns, quiet, auto, "scheduled", strategy=fake("cpu"))
    assert type(trainer.optimizers[0]).__name__ == "AdamW"
    factors = [0.5, 1.0, *((12 - step) / 10 for step in range(2, 12))]
    assert [rate[0] for rate in rates] == pytest.approx([1e-3 * factor for factor in factors])
    assert [rate[1] for rate in rates] == pytest.approx([1e-4 * factor for factor in factors])
    assert any(f"{strategy} keeps parameters in shards" in line and "adamw" in line for line in auto.messages)
    with pytest.raises(MisconfigurationException, match="cannot be told apart"):
        fit(ns, quiet, lp.OptimizerFactory("auto", groups={"net.*": {"lr": 1.0}}), strategy=fake("cpu"))
    with pytest.raises(MisconfigurationException, match=f"under {strategy}"):
        fit(ns, quiet, lp.OptimizerFactory("schedule_free_adamw"), strategy=fake("cpu"))


@pytest.mark.parametrize("kind", ["manual", "two_optimizers", "raw_step"])
def test_manual_optimization_is_refused(kind: str, ns: ModuleType, quiet: dict[str, Any]) -> None:
    with pytest.raises(MisconfigurationException, match=r"OptimizerFactory\('auto'\) cannot replace"):
        fit(ns, quiet, lp.OptimizerFactory("auto"), kind)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            {"ema": 0.999},
            r"ema=0\.999 with OptimizerFactory\('auto', \.\.\.\): .*averages its weights itself; leave ema",
        ),
        ({"schedule": "wsd"}, "schedule='wsd' with .*takes the place of a schedule; leave schedule out"),
        ({"lr": "auto"}, "lr='auto' with .*does well over a factor of ten; leave lr out"),
        ({"lr": "atuo"}, "lr='atuo'"),
        ({"lr": -1.0}, r"lr=-1\.0"),
    ],
    ids=str,
)
def test_settings_that_do_not_go_together(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        lp.OptimizerFactory("auto", **arguments)


def test_a_range_test_of_an_optimizer_without_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    row = rows.OptimizerRow("free", "torch.optim.Adagrad", "-", "-", {"lr": 1.0}, state_bytes=4, lr_free=True)
    monkeypatch.setitem(rows.ROWS, "free", row)
    with pytest.raises(ValueError, match="finds its learning rate itself; leave lr out"):
        lp.OptimizerFactory("free", lr="auto")


def test_the_kept_optimizer_takes_no_other_word_for_a_rate() -> None:
    with pytest.raises(ValueError, match="lr cannot be set without an optimizer"):
        lp.OptimizerFactory(lr="atuo")  # type: ignore[arg-type]
