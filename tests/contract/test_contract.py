"""What every callback promises (DESIGN.md), over the rows of one registry."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml

import lightning_perf as lp
from lightning_perf.cli.short_names import callback_classes
from lightning_perf.host import MisconfigurationException
from tests.contract.modules import KINDS, images, make
from tests.contract.rows import ROWS, Row

rows = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


def fit(ns: ModuleType, callbacks: Any, quiet: dict[str, Any], kind: str = "plain", **trainer_args: Any) -> Any:
    """Fit two epochs from the same seed; returns (trainer, module)."""
    module = make(kind, ns)
    torch.manual_seed(11)
    arguments = {"max_epochs": 2, **quiet, "callbacks": callbacks, **trainer_args}
    ckpt_path = arguments.pop("ckpt_path", None)
    trainer = ns.Trainer(**arguments)
    trainer.fit(module, images(), images(8, shuffle=False), ckpt_path=ckpt_path)
    return trainer, module


def weights(module: Any) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def assert_equal(
    left: dict[str, torch.Tensor], right: dict[str, torch.Tensor], rounding: bool = False, scale: float = 1.0
) -> None:
    assert list(left) == list(right)
    for key, value in left.items():
        if rounding:
            torch.testing.assert_close(value, right[key], rtol=1e-3 * scale, atol=1e-4 * scale)
        else:
            assert torch.equal(value, right[key]), key


def test_every_callback_has_a_row() -> None:
    """Whatever callback the package exports is under contract, and on the modules of others."""
    assert {type(row.make()) for row in ROWS} == set(callback_classes().values())


@rows
@pytest.mark.parametrize("kind", KINDS)
def test_lossless_or_refused(row: Row, kind: str, ns: ModuleType, quiet: dict[str, Any]) -> None:
    """Losses, metrics and weights of a lossless lever are those of the plain run; others fit or refuse in words."""
    if kind in row.refuses:
        with pytest.raises(MisconfigurationException, match=r"use |pass "):
            fit(ns, [row.make()], quiet, kind)
        return
    trainer, module = fit(ns, [row.make()], quiet, kind)
    assert all(torch.isfinite(value).all() for value in module.state_dict().values())
    if row.lossless is None:
        return
    plain_trainer, plain = fit(ns, [], quiet, kind)
    rounding = row.lossless == "rounding"
    assert_equal(weights(module), weights(plain), rounding)
    assert_equal(trainer.callback_metrics, plain_trainer.callback_metrics, rounding)
    assert module.losses == (pytest.approx(plain.losses, rel=1e-3) if rounding else plain.losses)


@rows
@pytest.mark.parametrize(
    "settings",
    [
        {"accumulate_grad_batches": 2},
        {"gradient_clip_val": 0.1},
        {"precision": "bf16-mixed", "gradient_clip_val": 0.1},
        {"max_epochs": -1, "max_steps": 5},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_trainer_settings(row: Row, settings: dict[str, Any], quiet: dict[str, Any]) -> None:
    """Accumulation, clipping, bf16-mixed with clipping (#21435) and a limit of steps: the plain run's weights."""
    import lightning.pytorch as ns

    _, module = fit(ns, [row.make()], quiet, **settings)
    if row.lossless:
        _, plain = fit(ns, [], quiet, **settings)
        scale = 100.0 if "precision" in settings else 1.0  # bfloat16 rounds 65,536 times as coarsely
        assert_equal(weights(module), weights(plain), row.lossless == "rounding", scale)


@rows
@pytest.mark.parametrize("kind", ["plain", "scheduled"])
def test_resume_is_exact(row: Row, kind: str, ns: ModuleType, quiet: dict[str, Any], tmp_path: Path) -> None:
    """A run resumed from an epoch-end checkpoint equals the uninterrupted one bit for bit."""

    def callbacks() -> list[Any]:
        own = [row.make()] + ([] if isinstance(row.make(), lp.ExactResume) else [lp.ExactResume()])
        saver = ns.callbacks.ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
        return [*own, saver]

    whole = {**quiet, "enable_checkpointing": True, "max_epochs": 3}
    _, module = fit(ns, callbacks(), whole, kind)
    (ckpt,) = tmp_path.glob("epoch=1.ckpt")
    torch.manual_seed(99)
    trainer, resumed = fit(ns, callbacks(), whole, kind, ckpt_path=str(ckpt))
    assert trainer.global_step == 18
    assert_equal(weights(resumed), weights(module))


@rows
def test_checkpoint_without_us(row: Row, ns: ModuleType, quiet: dict[str, Any], tmp_path: Path) -> None:
    """A checkpoint loads strictly, with ``weights_only=True``, and a lossless one resumes, in a run without us."""
    trainer, module = fit(ns, [row.make(), lp.ExactResume()], {**quiet, "max_epochs": 1})
    path = tmp_path / "c.ckpt"
    trainer.save_checkpoint(path)
    checkpoint = torch.load(path, weights_only=True)
    plain = make("plain", ns)
    if row.reshapes:
        lp.load_pruned(plain, path)
    else:
        plain.load_state_dict(checkpoint["state_dict"], strict=True)
    assert_equal(weights(plain), weights(module))
    if row.lossless:
        resumed, _ = fit(ns, [], quiet, ckpt_path=str(path), precision="bf16-mixed", gradient_clip_val=0.1)
        assert resumed.current_epoch == 2


@rows
@pytest.mark.parametrize("fails", [False, True])
def test_leaves_no_trace(row: Row, fails: bool, ns: ModuleType, quiet: dict[str, Any]) -> None:
    """Module, strategy, loops, loggers and global flags are as before, also when ``fit`` raises; a new fit works."""

    class Bomb(ns.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if fails and trainer.global_step == 3:
                raise RuntimeError("planted")

    def trace(trainer: Any, module: Any) -> dict[str, Any]:
        objects = (module, trainer.strategy, trainer.fit_loop, trainer._checkpoint_connector, trainer._logger_connector)
        loops = (trainer.fit_loop.epoch_loop, trainer.fit_loop.epoch_loop.val_loop, trainer.validate_loop)
        return {
            "names": [sorted(vars(each)) for each in objects],
            "profiler": type(trainer.profiler),
            "results": [type(loop._results) for loop in loops],
            "precision": type(trainer.strategy.precision_plugin),
            "strides": [] if row.reshapes else [p.stride() for p in module.parameters()],
            "flags": (torch.are_deterministic_algorithms_enabled(), torch.is_grad_enabled(), torch.get_num_threads()),
        }

    def run(callbacks: list[Any]) -> tuple[dict[str, Any], Any, Any]:
        module = make("plain", ns)
        trainer = ns.Trainer(**quiet, max_epochs=1, callbacks=[*callbacks, Bomb()])
        if fails:
            with pytest.raises(RuntimeError, match="planted"):
                trainer.fit(module, images(), images(8))
        else:
            trainer.fit(module, images(), images(8))
        return trace(trainer, module), trainer, module

    ours, trainer, module = run([row.make()])
    plain, *_ = run([])
    assert ours == plain
    fails = False
    trainer.fit(module, images(), images(8))
    pickle.loads(pickle.dumps(module.state_dict()))
    assert_equal(weights(copy.deepcopy(module)), weights(module))


@rows
def test_two_fits_validate_test_predict(row: Row, ns: ModuleType, quiet: dict[str, Any]) -> None:
    """One callback, one Trainer: validate, fit, fit again, test and predict, in one process."""
    module, callback = make("plain", ns), row.make()
    trainer = ns.Trainer(**quiet, max_epochs=1, callbacks=[callback])
    before = trainer.validate(module, images(8, shuffle=False), verbose=False)
    trainer.fit(module, images(), images(8, shuffle=False))
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, images(), images(8, shuffle=False))
    assert trainer.global_step == 12
    after = trainer.validate(module, images(8, shuffle=False), verbose=False)
    assert after[0]["val_loss"] < before[0]["val_loss"]
    assert trainer.test(module, images(8, shuffle=False), verbose=False)[0].keys() == {"test_loss"}
    predictions = trainer.predict(module, images(8, shuffle=False))
    assert torch.cat(predictions).shape == (8, 3)


@rows
def test_pickles_and_copies(row: Row, ns: ModuleType, quiet: dict[str, Any]) -> None:
    """The callback pickles and deep-copies, before and after a fit, and keeps its arguments."""
    callback = row.make()
    assert repr(pickle.loads(pickle.dumps(callback))) == repr(callback)
    fit(ns, [callback], {**quiet, "max_epochs": 1})
    again = pickle.loads(pickle.dumps(copy.deepcopy(callback)))
    assert again.state_key == callback.state_key
    fit(ns, [again], {**quiet, "max_epochs": 1})


@rows
def test_bare_callback(row: Row, ns: ModuleType, quiet: dict[str, Any]) -> None:
    """Both Trainers accept it outside a list too."""
    trainer, _ = fit(ns, row.make(), {**quiet, "max_epochs": 1})
    assert any(type(callback) is type(row.make()) for callback in trainer.callbacks)


@rows
def test_cli_round_trip(row: Row, ns: ModuleType, tmp_path: Path) -> None:
    """The constructor comes out of LightningCLI YAML as it went in, in both namespaces."""
    import importlib

    cli = importlib.import_module(f"{ns.__name__}.cli")
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump({"trainer": {"callbacks": [row.yaml], "logger": False, "accelerator": "cpu"}}))
    demo = importlib.import_module(f"{ns.__name__}.demos.boring_classes")
    made = cli.LightningCLI(demo.BoringModel, run=False, args=["--config", str(config)], save_config_callback=None)
    callback = next(callback for callback in made.trainer.callbacks if type(callback) is type(row.make()))
    assert repr(callback) == repr(row.make())
    printed = made.parser.dump(made.config)
    again = cli.LightningCLI(demo.BoringModel, run=False, args=yaml.safe_load(printed), save_config_callback=None)
    assert any(repr(each) == repr(callback) for each in again.trainer.callbacks if type(each) is type(callback))


@rows
@pytest.mark.parametrize("other", ROWS, ids=lambda row: row.name)
def test_composes_with_every_other(row: Row, other: Row, quiet: dict[str, Any]) -> None:
    """Any two in one Trainer, in this order (the other order is another case): both lossless gives the plain run."""
    import lightning.pytorch as ns

    callbacks = [row.make(), other.make()]
    both_replace = all(each.name.startswith("OptimizerFactory-") for each in (row, other))
    if both_replace and row is not other:
        with pytest.raises(MisconfigurationException, match="keep one of the two"):
            fit(ns, callbacks, quiet)
        return
    _, module = fit(ns, callbacks, {**quiet, "max_epochs": 1})
    if row.lossless and other.lossless:
        _, plain = fit(ns, [], {**quiet, "max_epochs": 1})
        bitwise = row.lossless == other.lossless == "bitwise"
        assert_equal(weights(module), weights(plain), rounding=not bitwise)


@rows
@pytest.mark.parametrize("first", [True, False])
def test_composes_with_weight_averaging(row: Row, first: bool, quiet: dict[str, Any]) -> None:
    """Lightning's own EMAWeightAveraging, before and after us: the average is that of the plain run."""
    import lightning.pytorch as ns

    if not hasattr(ns.callbacks, "EMAWeightAveraging"):
        pytest.skip("this release of Lightning has no EMAWeightAveraging")

    def averaged(callbacks: list[Any]) -> Any:
        ema = ns.callbacks.EMAWeightAveraging(decay=0.5)
        return fit(ns, [*callbacks, ema] if first else [ema, *callbacks], {**quiet, "max_epochs": 1})[1]

    module = averaged([row.make()])
    if row.lossless:
        assert_equal(weights(module), weights(averaged([])), rounding=row.lossless == "rounding")


@rows
def test_composes_with_the_learning_rate_finder(row: Row, ns: ModuleType, quiet: dict[str, Any]) -> None:
    """Lightning's own finder trains, restores and goes on beside us; beside a lossless lever it suggests the same."""

    def suggested(callbacks: list[Any]) -> tuple[float, Any]:
        finder = ns.callbacks.LearningRateFinder(num_training_steps=12, max_lr=0.1)
        base = type(make("plain", ns))

        class Tunable(base):  # type: ignore[misc, valid-type]
            lr = 1e-2

            def configure_optimizers(self) -> Any:
                return torch.optim.AdamW(self.parameters(), lr=self.lr)

        torch.manual_seed(3)
        module = Tunable()
        torch.manual_seed(11)
        trainer = ns.Trainer(**quiet, max_epochs=1, callbacks=[*callbacks, finder])
        trainer.fit(module, images())
        assert trainer.global_step == 6
        return module.lr, module

    lr, module = suggested([row.make()])
    if row.lossless:
        plain_lr, plain = suggested([])
        assert lr == pytest.approx(plain_lr, rel=1e-3)
        assert_equal(weights(module), weights(plain), rounding=row.lossless == "rounding")


@rows
def test_an_exception_inside_the_finder_leaves_no_trace(row: Row, ns: ModuleType, quiet: dict[str, Any]) -> None:
    """While the finder trains, the Trainer has other callbacks and ours hear of no exception: undone all the same."""
    module = make("plain", ns)
    base = type(module)
    names = sorted(vars(module))

    class Fragile(base):  # type: ignore[misc, valid-type]
        lr = 1e-2
        fail = True

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if self.fail and batch_idx == 2:
                raise RuntimeError("planted")
            return super().training_step(batch, batch_idx)

    module = Fragile()
    strides = [p.stride() for p in module.parameters()]
    finder = ns.callbacks.LearningRateFinder(num_training_steps=12)
    trainer = ns.Trainer(**quiet, max_epochs=1, callbacks=[row.make(), finder])
    with pytest.raises(RuntimeError, match="planted"):
        trainer.fit(module, images())
    assert "log" not in set(vars(module)) - set(names)
    assert [p.stride() for p in module.parameters()] == strides
    assert not {"setup_optimizers", "training_step", "on_exception"} & set(vars(trainer.strategy))
    module.fail = False
    fit_again = ns.Trainer(**quiet, max_epochs=1, callbacks=[row.make()])
    fit_again.fit(module, images(), images(8, shuffle=False))
    assert fit_again.global_step == 6


@rows
def test_given_twice(row: Row, quiet: dict[str, Any]) -> None:
    """The same callback twice: the second does nothing and says so; the run is that of one."""
    import lightning.pytorch as ns

    first, second = row.make(), row.make()
    _, module = fit(ns, [first, second], {**quiet, "max_epochs": 1})
    assert second.messages == [f"{type(second).__name__}: given twice with the same arguments; this one does nothing."]
    _, once = fit(ns, [row.make()], {**quiet, "max_epochs": 1})
    assert_equal(weights(module), weights(once))


@rows
def test_says_what_it_did(row: Row, quiet: dict[str, Any]) -> None:
    """Every callback that is not silent by nature says in a line what it changed or why it changed nothing."""
    import lightning.pytorch as ns

    callback = row.make()
    fit(ns, [callback], {**quiet, "max_epochs": 1})
    assert callback.messages
    assert all(line.startswith(type(callback).__name__ + ": ") for line in callback.messages)
