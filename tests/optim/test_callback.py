"""OptimizerFactory on a Trainer: kept optimizers, replaced ones, schedules over real steps, refusals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, IterableDataset

import lightning_perf as lp
from lightning_perf.host import MisconfigurationException
from tests.contract.modules import images, make


class Rates:
    """Learning rates, groups and kernel flags at every step, read from the Trainer's own optimizer."""

    def __init__(self, ns: ModuleType) -> None:
        rates: list[list[float]] = []
        flags: list[tuple[str, Any]] = []
        groups: list[list[dict[str, Any]]] = []

        class Record(ns.Callback):
            def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
                (optimizer,) = trainer.optimizers
                rates.append([group["lr"] for group in optimizer.param_groups])
                flags.append((type(optimizer).__name__, optimizer.param_groups[0].get("fused")))
                groups.append(optimizer.param_groups)

        self.rates, self.flags, self.groups, self.callback = rates, flags, groups, Record()


def fit(
    ns: ModuleType,
    quiet: dict[str, Any],
    factory: Any,
    configure: Callable[[Any], Any] | None = None,
    *,
    kind: str = "plain",
    loader: Any = None,
    resume: Any = None,
    **arguments: Any,
) -> tuple[Any, Any, Rates]:
    base = type(make(kind, ns))
    module = make(kind, ns)
    if configure is not None:
        cls = type("Own", (base,), {"configure_optimizers": lambda self: configure(self)})
        torch.manual_seed(3)
        module = cls()
    torch.manual_seed(11)
    record = Rates(ns)
    trainer = ns.Trainer(**{**quiet, "max_epochs": 2, **arguments}, callbacks=[factory, record.callback])
    trainer.fit(module, loader if loader is not None else images(), images(8, shuffle=False), ckpt_path=resume)
    return trainer, module, record


def test_kept_optimizer_steps_fused(ns: ModuleType, quiet: dict[str, Any], tmp_path: Any) -> None:
    """The user's AdamW steps fused; what is saved holds the user's flags; a resume is fused again."""
    saver = ns.callbacks.ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    factory = lp.OptimizerFactory()
    record = Rates(ns)
    trainer = ns.Trainer(
        **{**quiet, "enable_checkpointing": True}, max_epochs=2, callbacks=[factory, record.callback, saver]
    )
    trainer.fit(make("plain", ns), images())
    assert set(record.flags) == {("AdamW", True)}
    assert factory.messages == ["OptimizerFactory: AdamW: the step is now fused."]
    saved = torch.load(tmp_path / "epoch=0.ckpt", weights_only=True)["optimizer_states"][0]
    assert saved["param_groups"][0]["fused"] is None
    _, _, again = (lambda r: (None, None, r))(Rates(ns))
    resumed = ns.Trainer(**quiet, max_epochs=2, callbacks=[lp.OptimizerFactory(), again.callback])
    resumed.fit(make("plain", ns), images(), ckpt_path=tmp_path / "epoch=0.ckpt")
    assert again.flags == [("AdamW", True)] * 6


@pytest.mark.parametrize(
    ("configure", "words"),
    [
        (lambda m: torch.optim.RMSprop(m.parameters(), lr=1e-3), "RMSprop"),
        (lambda m: torch.optim.AdamW(m.parameters(), lr=1e-3, fused=False), "fused=False"),
        (lambda m: torch.optim.AdamW(m.parameters(), lr=1e-3, fused=True), "already"),
        (lambda m: None, "returned no optimizer"),
    ],
    ids=["no kernel", "user says no", "already fused", "no optimizer"],
)
def test_kept_optimizer_left_alone_and_said(configure: Any, words: str, ns: ModuleType, quiet: dict[str, Any]) -> None:
    factory = lp.OptimizerFactory()
    base = type(make("plain", ns))
    module = type("Own", (base,), {"configure_optimizers": lambda self: configure(self)})()
    trainer = ns.Trainer(**quiet, max_epochs=1, callbacks=[factory])
    trainer.fit(module, images())
    assert words in factory.messages[0]


def test_sparse_and_complex_parameters(ns: ModuleType, quiet: dict[str, Any]) -> None:
    """Sparse gradients under SGD, and a complex parameter: no fused kernel, no crash, a line."""

    class Odd(ns.LightningModule):
        def __init__(self, sparse: bool) -> None:
            super().__init__()
            self.sparse = sparse
            self.table = nn.Embedding(4, 2, sparse=sparse)
            self.wave = nn.Parameter(torch.zeros(2, dtype=torch.float32 if sparse else torch.complex64))

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return (self.table(batch[1]).sum(0) * self.wave).abs().sum()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    for sparse in (True, False):
        factory = lp.OptimizerFactory()
        ns.Trainer(**quiet, max_epochs=1, callbacks=[factory]).fit(Odd(sparse), images())
        assert ("sparse" if sparse else "complex") in factory.messages[0]


def test_replaced_optimizer_has_inferred_groups(ns: ModuleType, quiet: dict[str, Any]) -> None:
    """Only what the user's optimizer had, without the frozen; norms and biases do not decay; the user's ratio stays."""

    def configure(module: Any) -> Any:
        module.net[0].weight.requires_grad_(False)
        head = list(module.net[-1].parameters())
        body = [p for p in module.net[:-1].parameters() if p.requires_grad]
        return torch.optim.Adam([{"params": body}, {"params": head, "lr": 1e-3}], lr=1e-2)

    factory = lp.OptimizerFactory("adamw", lr=4e-3, weight_decay=0.2, groups={"net.4.bias": {"lr": 1e-5}})
    _, module, record = fit(ns, quiet, factory, configure)
    table = {name: (group["lr"], group["weight_decay"]) for group in record.groups[0] for name in group["names"]}
    assert table == {
        "net.1.weight": (4e-3, 0.0),
        "net.1.bias": (4e-3, 0.0),
        "net.4.weight": (4e-3, 0.2),
        "net.4.bias": (1e-5, 0.0),
        "net.7.weight": (4e-4, 0.2),
        "net.7.bias": (4e-4, 0.0),
    }
    assert set(record.flags) == {("AdamW", True)}
    assert "Adam (lr 0.01) replaced by adamw (lr 0.004)" in factory.messages[0]
    assert not module.net[0].weight.requires_grad


def test_schedule_runs_over_optimizer_steps(ns: ModuleType, quiet: dict[str, Any]) -> None:
    """6 batches, accumulation 2, 2 epochs: 6 optimizer steps, 2 of them warm-up; a list by hand."""
    factory = lp.OptimizerFactory("sgd", lr=1.0, schedule="warmup_linear", warmup=2)
    _, _, record = fit(ns, quiet, factory, accumulate_grad_batches=2)
    expected = [0.5, 0.5, 1.0, 1.0, 1.0, 1.0, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25]
    assert [round(rates[0], 6) for rates in record.rates] == expected


def test_a_schedule_on_the_users_optimizer(ns: ModuleType, quiet: dict[str, Any]) -> None:
    """Without a name, a schedule of ours takes the place of the user's; optimizer, groups and peaks stay."""
    _, _, record = fit(ns, quiet, lp.OptimizerFactory(schedule="constant", warmup=0), kind="scheduled")
    assert record.rates == [[1e-2, 1e-3]] * 12
    assert set(record.flags) == {("Adam", True)}


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "step": lambda o: lr_scheduler.StepLR(o, 2, 0.5),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: min(1.0, (step + 1) / 4)),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 12),
    "one_cycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=[1e-2, 1e-3], total_steps=12),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.1, 3), lr_scheduler.ExponentialLR(o, 0.8)], [3]
    ),
    "chained": lambda o: lr_scheduler.ChainedScheduler([lr_scheduler.ExponentialLR(o, 0.8)], optimizer=o),
}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.filterwarnings("error:Detected call of:UserWarning", "error:Seems like:UserWarning")
def test_keep_moves_the_users_scheduler(name: str, ns: ModuleType, quiet: dict[str, Any]) -> None:
    """The learning rates of the replaced optimizer are the user's, scaled: same shape, same ratio between groups."""

    def configure(module: Any) -> Any:
        head = list(module.net[-1].parameters())
        optimizer = torch.optim.Adam([{"params": module.net[:-1].parameters()}, {"params": head, "lr": 1e-3}], lr=1e-2)
        scheduler = {"scheduler": SCHEDULERS[name](optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    _, _, ours = fit(ns, quiet, lp.OptimizerFactory("adamw", lr=3e-2), configure)
    _, _, plain = fit(ns, quiet, ns.callbacks.Callback(), configure)
    torch.testing.assert_close(torch.tensor(ours.rates), 3 * torch.tensor(plain.rates), rtol=1e-6, atol=1e-9)
    assert ours.flags[0][0] == "AdamW"


def test_keep_moves_plateau(ns: ModuleType, quiet: dict[str, Any]) -> None:
    def configure(module: Any) -> Any:
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
        plateau = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=0, threshold=1e9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"}}

    _, _, record = fit(ns, quiet, lp.OptimizerFactory("nadam", lr=1e-3), configure, max_epochs=3)
    assert [round(record.rates[i][0], 9) for i in (0, 6, 12)] == [1e-3, 1e-4, 1e-5]


def test_keep_refuses_what_it_cannot_move(ns: ModuleType, quiet: dict[str, Any]) -> None:
    def configure(module: Any) -> Any:
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
        return [optimizer], [lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=12)]

    with pytest.raises(MisconfigurationException, match=r"OneCycleLR cycles betas.*schedule='one_cycle'"):
        fit(ns, quiet, lp.OptimizerFactory("sgd"), configure)
    with pytest.raises(MisconfigurationException, match="own scheduler is bound"):
        fit(ns, quiet, lp.OptimizerFactory("adamw", groups={"net.*": {"lr": 1e-4}}), configure)


def test_a_module_without_configure_optimizers(ns: ModuleType, quiet: dict[str, Any]) -> None:
    """Lightning refuses it before any callback is asked, and says what is missing."""

    class Bare(ns.LightningModule):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            return None

    trainer = ns.Trainer(**quiet, max_epochs=1, callbacks=[lp.OptimizerFactory("adamw")])
    with pytest.raises(ns.utilities.exceptions.MisconfigurationException, match="No `configure_optimizers"):
        trainer.fit(Bare(), images())


class Endless(IterableDataset):
    """A loader without length."""

    def __iter__(self) -> Iterator[Any]:
        yield from images().dataset


def test_a_schedule_needs_a_known_number_of_steps(ns: ModuleType, quiet: dict[str, Any]) -> None:
    """No length and no max_steps: refused before training; with max_steps it runs."""
    endless = DataLoader(Endless(), batch_size=4)
    factory = lp.OptimizerFactory("adamw", schedule="warmup_cosine")
    for epochs in (-1, 2):
        with pytest.raises(ValueError, match=r"(inf|-1).*max_steps"):
            fit(ns, quiet, factory, loader=endless, max_epochs=epochs)
    _, _, record = fit(ns, quiet, factory, loader=endless, max_epochs=-1, max_steps=4)
    assert len(record.rates) == 4
    _, _, record = fit(ns, quiet, lp.OptimizerFactory("adamw"), loader=endless, max_epochs=1)
    assert len(record.rates) == 6


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"optimizer": "adamq"}, r"'adamq'.*adam"),
        ({"optimizer": "adamw", "schedule": "cosin"}, r"'cosin'.*warmup_cosine"),
        ({"optimizer": "adamw", "lr": 0.0}, r"lr.*0\.0"),
        ({"optimizer": "adamw", "lr": float("nan")}, "lr.*nan"),
        ({"optimizer": "sgd", "options": {"momentun": 0.9}}, "momentun.*momentum"),
        ({"lr": 1e-3}, r"lr cannot be set without an optimizer.*OptimizerFactory\('adamw'"),
        ({"weight_decay": 0.1, "options": {}}, "weight_decay, options cannot be set"),
    ],
    ids=str,
)
def test_bad_arguments(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        lp.OptimizerFactory(**arguments)


def test_bad_settings_of_a_run(ns: ModuleType, quiet: dict[str, Any]) -> None:
    """A pattern that matches nothing: before the first step, with the fix."""
    with pytest.raises(ValueError, match=r"nothing\.\*"):
        fit(ns, quiet, lp.OptimizerFactory("adamw", groups={"nothing.*": {"lr": 1.0}}))


@pytest.mark.parametrize("strategy", ["FSDPStrategy", "ModelParallelStrategy"])
def test_sharded_strategies_are_refused_by_name(strategy: str, quiet: dict[str, Any]) -> None:
    import lightning.pytorch as ns

    base = ns.strategies.SingleDeviceStrategy
    fake = type(strategy, (base,), {"__module__": base.__module__})
    with pytest.raises(MisconfigurationException, match=f"under {strategy}.*use DDP"):
        fit(ns, quiet, lp.OptimizerFactory("adamw"), strategy=fake("cpu"))


def test_every_row_of_the_registry_trains(quiet: dict[str, Any]) -> None:
    """Each name, with its defaults, on the same module: finite, and the loss falls where gradients are dense."""
    import lightning.pytorch as ns

    for row in lp.list_optimizers():
        factory = lp.OptimizerFactory(row.name)
        if row.name == "sparse_adam":
            with pytest.raises((RuntimeError, ValueError), match=r"[Ss]parse|dense"):
                fit(ns, quiet, factory)
            continue
        _, module, _ = fit(ns, quiet, factory, max_epochs=4)
        assert sum(module.losses[-6:]) < sum(module.losses[:6]), row.name


def test_a_schedule_in_place_of_one_cycle(ns: ModuleType, quiet: dict[str, Any]) -> None:
    """The user's OneCycleLR has scaled lr to a 25th and moved betas: both come back before our schedule starts."""

    def configure(module: Any) -> Any:
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-2, betas=(0.8, 0.99))
        scheduler = lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=12)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    factory = lp.OptimizerFactory(schedule="constant")
    _, _, record = fit(ns, quiet, factory, configure)
    assert record.rates == [[0.1]] * 12
    assert record.groups[0][0]["betas"] == (0.8, 0.99)
    assert any("in place of the module's OneCycleLR" in line for line in factory.messages)


def test_a_checkpoint_of_another_optimizer(ns: ModuleType, quiet: dict[str, Any], tmp_path: Any) -> None:
    """Refused in words before torch fails in its own."""
    trainer, *_ = fit(ns, quiet, lp.OptimizerFactory("sgd"), max_epochs=1)
    trainer.save_checkpoint(tmp_path / "c.ckpt")
    for name in ("adamw", "nadam"):
        other = ns.Trainer(**quiet, max_epochs=2, callbacks=[lp.OptimizerFactory(name)])
        with pytest.raises(MisconfigurationException, match=r"its optimizer is another one.*load_from_checkpoint"):
            other.fit(make("plain", ns), images(), ckpt_path=tmp_path / "c.ckpt")


def test_learning_rate_zero_and_unknown_schedulers(ns: ModuleType, quiet: dict[str, Any]) -> None:
    with pytest.raises(MisconfigurationException, match=r"learning rate 0.*OptimizerFactory\(\)"):
        fit(ns, quiet, lp.OptimizerFactory("adamw"), lambda m: torch.optim.SGD(m.parameters(), lr=0.0))

    def cyclic(module: Any) -> Any:
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        return [optimizer], [lr_scheduler.CyclicLR(optimizer, 0.01, 0.1, cycle_momentum=False)]

    with pytest.raises(MisconfigurationException, match="CyclicLR keeps its peaks"):
        fit(ns, quiet, lp.OptimizerFactory("adamw"), cyclic)


def test_two_schedules(ns: ModuleType, quiet: dict[str, Any]) -> None:
    callbacks = [lp.OptimizerFactory(schedule="wsd"), lp.OptimizerFactory(schedule="constant")]
    trainer = ns.Trainer(**quiet, max_epochs=1, callbacks=callbacks)
    with pytest.raises(MisconfigurationException, match="keep one of the two"):
        trainer.fit(make("plain", ns), images())
