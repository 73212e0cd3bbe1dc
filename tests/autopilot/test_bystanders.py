"""Fits that are only measured beside files of the user's own fits: none is overwritten, removed or added."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import lightning_perf as lp
from tests.autopilot.test_race import SGD, module_of

FILES = ("ck/best.ckpt", "ck/last.ckpt", "ck/on_exception.ckpt", "checkpoints/best.ckpt", "logs/mine/v/metrics.csv")


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What earlier fits have left in the working directory."""
    monkeypatch.chdir(tmp_path)
    for name in FILES:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(f"mine: {name}")
    return there()


def there() -> dict[str, str]:
    """Every file below the working directory, and what is in it."""
    paths = (path for path in Path().rglob("*") if path.is_file())
    return {str(path): path.read_bytes().decode(errors="replace") for path in paths}


def saver(ns: ModuleType, dirpath: str | None = "ck") -> Any:
    return ns.callbacks.ModelCheckpoint(dirpath, "best", save_last=True, enable_version_counter=False)


def bringing(ns: ModuleType, *callbacks: Any) -> Any:
    """A module with callbacks of its own."""
    module = module_of(ns)
    module.configure_callbacks = lambda: list(callbacks)
    return module


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", ["named", "unnamed", "exception", "brought", "logger"])
def test_compare_leaves_the_users_files_alone(
    case: str, ns: ModuleType, quiet: dict[str, Any], files: dict[str, str]
) -> None:
    """Saving goes on, so that it is measured: every run has its checkpoint when it ends, and knows the last one."""
    found: list[bool] = []

    class Look(ns.Callback):
        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            for one in trainer.checkpoint_callbacks:
                if hasattr(one, "best_model_path"):
                    found.extend(Path(path).is_file() for path in (one.best_model_path, one.last_model_path))

    class Fail(ns.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            raise ArithmeticError

    def fit(fails: bool = False) -> tuple[Any, Any]:
        callbacks = [Look(), *([Fail()] if fails else [])]
        arguments: dict[str, Any] = {**quiet, "enable_checkpointing": True, "default_root_dir": None}
        module = module_of(ns)
        if case == "brought":
            module = bringing(ns, saver(ns))
        elif case == "exception":
            callbacks += [ns.callbacks.OnExceptionCheckpoint("ck"), saver(ns)]
        else:
            callbacks.append(saver(ns, "ck" if case == "named" else None))
        if case == "logger":
            arguments["logger"] = ns.loggers.CSVLogger("logs", "mine", "v")
            arguments["profiler"] = ns.profilers.SimpleProfiler("ck", "last")
        return ns.Trainer(**arguments, max_epochs=2, callbacks=callbacks), module

    report = lp.compare({"a": fit, "b": lambda: fit(fails=case == "exception")}, pairs=1)
    assert [run.error is None for run in report.runs_of("a")] == [True]
    assert found == [True] * (2 if case == "exception" else 4)
    assert there() == files


@pytest.mark.filterwarnings("ignore")
def test_a_race_takes_out_what_the_module_brings(quiet: dict[str, Any], files: dict[str, str]) -> None:
    import lightning.pytorch as pl

    def training() -> tuple[Any, Any]:
        stop = pl.callbacks.EarlyStopping("val_loss", stopping_threshold=1e9)
        logger = pl.loggers.CSVLogger("logs", "mine", "v")
        trainer = pl.Trainer(**{**quiet, "logger": logger, "enable_checkpointing": True}, max_epochs=20)
        return trainer, bringing(pl, saver(pl), stop)

    report = lp.race(training, optimizers=[SGD], budget="20 steps", seeds=1)
    assert [(run.error, run.value("steps")) for run in report.runs] == [(None, 20), (None, 20)]
    assert there() == files
