"""``lightning-perf run``: the script notices nothing, every Trainer is given callbacks, every rank the same."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning.pytorch
import pytest

import lightning_perf as lp
from lightning_perf.cli import main
from lightning_perf.cli.additions import Additions
from lightning_perf.cli.run_command import read_words
from lightning_perf.cli.short_names import CallbackSpec, callback_classes, help_of
from lightning_perf.host import PerfCallback

ROOT = Path(__file__).parents[2]
FACTS = """
import json, pickle, sys

class Mine:
    pass

main = sys.modules["__main__"]
facts = [sys.argv, __file__, __name__, __spec__ and __spec__.name, __package__, sys.path[0], type(__loader__).__name__]
print(json.dumps([*facts, main.__dict__ is globals(), pickle.loads(pickle.dumps(Mine())).__class__ is Mine]))
"""
TRAINS = """
import sys
import lightning.pytorch as pl
from lightning.pytorch.demos.boring_classes import BoringModel

QUIET = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)

if __name__ == "__main__":
    trainer = pl.Trainer(devices=int(sys.argv[1]), strategy=sys.argv[2], accelerator="cpu", fast_dev_run=2, **QUIET)
    trainer.fit(BoringModel())
    names = [type(one).__name__ for one in trainer.callbacks]
    sys.stdout.write(f"{names} {type(trainer.strategy).__name__} {trainer.global_rank}\\n")
"""


#: Lightning leaves them behind after ranks of this process; a script that finds them starts none of its own.
RANK = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def python(*words: str, cwd: Path, flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Start the interpreter with these words; our tree is importable, and Lightning does not colour or wrap."""
    inherited = {name: value for name, value in os.environ.items() if name not in RANK}
    environment = {**inherited, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *flags, *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=240)


def through_run(*words: str, cwd: Path, flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return python("-m", "lightning_perf", "run", "--lossless", *words, cwd=cwd, flags=flags)


@pytest.fixture
def installed() -> Iterator[Callable[..., Additions]]:
    """Make additions and install them until the test ends."""
    undo: list[Callable[[], None]] = []

    def install(*specs: CallbackSpec, **options: Any) -> Additions:
        additions = Additions(specs, say=lambda line: None, **options)
        undo.append(additions.install())
        return additions

    yield install
    for function in undo:
        function()


def ours(trainer: Any) -> list[PerfCallback]:
    return [callback for callback in trainer.callbacks if isinstance(callback, PerfCallback)]


def test_every_trainer_of_both_namespaces(
    ns: ModuleType, quiet: dict[str, Any], installed: Callable[..., Additions]
) -> None:
    """Subclasses, a bare callback, a list that stays the user's; fresh instances; one line; put back afterwards."""
    plain_init = ns.Trainer.__init__

    class Mine(ns.Trainer):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)

    added = installed(CallbackSpec.parse("OptimizerFactory", {"optimizer": "adamw", "lr": "3e-3"}))
    timer, given = ns.callbacks.Timer(), [ns.callbacks.Timer()]
    first, second = Mine(**quiet, callbacks=timer), ns.Trainer(**quiet, callbacks=given)
    [one], [two] = ours(first), ours(second)
    assert one is not two
    assert repr(one) == repr(two) == repr(lp.OptimizerFactory("adamw", lr=3e-3))
    assert timer in first.callbacks
    assert len(given) == 1
    assert added.said == [f"Trainer of {ns.__name__}: added OptimizerFactory(optimizer=adamw, lr=3e-3)"]
    assert added.trainers == 2
    demo = __import__(f"{ns.__name__}.demos.boring_classes", fromlist=["BoringModel"])
    first.fit_loop.max_epochs = 1
    first.fit(demo.BoringModel())
    assert type(first.optimizers[0]).__name__ == "AdamW"
    added.install()()  # a second one leaves the first in place
    assert ns.Trainer.__init__ is not plain_init


def test_the_undo(ns: ModuleType, quiet: dict[str, Any]) -> None:
    before = ns.Trainer.__init__
    Additions(lossless=True).install()()
    assert ns.Trainer.__init__ is before
    assert ours(ns.Trainer(**quiet)) == []


def test_what_the_script_has_is_not_doubled(
    ns: ModuleType, quiet: dict[str, Any], installed: Callable[..., Additions]
) -> None:
    added = installed(CallbackSpec.parse("OptimizerFactory", {"optimizer": "lion"}), lossless=True)
    mine = lp.FastLogging()
    trainer = ns.Trainer(**quiet, callbacks=[mine])
    names = [type(one).__name__ for one in ours(trainer)]
    assert sorted(names) == ["ChannelsLast", "ExactResume", "FastLogging", "MallocTuning", "OptimizerFactory"]
    assert mine in trainer.callbacks
    assert (
        added.said[-1] == f"Trainer of {ns.__name__}: left out FastLogging(), whose class the script gives it already"
    )


def strategies(ns: ModuleType) -> dict[str, tuple[dict[str, Any], bool, str]]:
    """What a script asks for, whether a preset takes its place, and a word of what is said."""
    return {
        "ddp": ({"strategy": "ddp", "devices": 2}, True, "ddp replaced by perf_ddp_bf16"),
        "chosen by the Trainer": ({"devices": 2}, True, "ddp replaced"),
        "with settings": ({"strategy": "ddp_spawn_find_unused_parameters_true", "devices": 2}, True, "replaced"),
        "one device": ({"devices": 1}, False, "one device, and nothing to exchange"),
        "an object": ({"strategy": ns.strategies.DDPStrategy(), "devices": 2}, False, "built its DDPStrategy itself"),
        "a preset": ({"strategy": "perf_ddp", "devices": 2}, False, "strategy perf_ddp kept"),
    }


@pytest.mark.parametrize("case", strategies(lightning.pytorch))
def test_strategy_where_it_can_be_replaced(
    case: str, ns: ModuleType, quiet: dict[str, Any], installed: Callable[..., Additions]
) -> None:
    added = installed(strategy="perf_ddp_bf16")
    asked, replaced, said = strategies(ns)[case]
    strategy: Any = ns.Trainer(**{**quiet, **asked}).strategy
    assert said in added.said[0]
    assert (getattr(getattr(strategy, "preset", None), "name", None) == "perf_ddp_bf16") is replaced
    if case == "with settings":
        assert strategy._ddp_kwargs == {"find_unused_parameters": True}
        assert strategy._start_method == "spawn"


def test_the_environment_of_the_trainer_counts(
    ns: ModuleType, quiet: dict[str, Any], installed: Callable[..., Additions], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PL_TRAINER_STRATEGY", "ddp")
    installed(strategy="perf_ddp")
    strategy: Any = ns.Trainer(**quiet).strategy
    assert strategy.preset.name == "perf_ddp"


def test_a_variable_that_comes_too_late_is_said(
    quiet: dict[str, Any], installed: Callable[..., Additions], monkeypatch: pytest.MonkeyPatch
) -> None:
    added = installed(lossless=True)
    monkeypatch.setenv("OMP_NUM_THREADS", "17")
    lightning.pytorch.Trainer(**quiet)
    assert added.said[0].startswith("the script sets OMP_NUM_THREADS, which is read when torch is imported")


@pytest.mark.parametrize("flags", [(), pytest.param(("-P",), marks=pytest.mark.slow)], ids=["", "safe path"])
def test_a_script_sees_what_python_shows_it(tmp_path: Path, flags: tuple[str, ...]) -> None:
    if flags and sys.version_info < (3, 11):
        pytest.skip("-P came with Python 3.11")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "facts.py").write_text(FACTS)
    words = ("deep/facts.py", "--lossless", "-x", "1")
    plain, run = python(*words, cwd=tmp_path, flags=flags), through_run(*words, cwd=tmp_path, flags=flags)
    assert run.stdout == plain.stdout
    assert plain.stdout.startswith('[["deep/facts.py", "--lossless"')
    assert "the script made no Trainer of lightning.pytorch or pytorch_lightning (Fabric makes none" in run.stderr


@pytest.mark.parametrize("name", ["pack", pytest.param("pack.tool", marks=pytest.mark.slow)])
def test_a_module_sees_what_python_shows_it(tmp_path: Path, name: str) -> None:
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text("")
    (tmp_path / "pack" / "__main__.py").write_text(FACTS)
    (tmp_path / "pack" / "tool.py").write_text(FACTS)
    plain, run = python("-m", name, "a", cwd=tmp_path), through_run("-m", name, "a", cwd=tmp_path)
    assert plain.returncode == 0, plain.stderr
    assert run.stdout == plain.stdout


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("import sys; sys.exit(7)", marks=pytest.mark.slow),
        "import sys; sys.exit('in words')",
        "def f():\n    raise KeyError('mine')\nf()",
        pytest.param("x = (", marks=pytest.mark.slow),
        pytest.param(
            "import sys\nsys.excepthook = lambda *three: print('hooked', three[0].__name__)\n1 / 0",
            marks=pytest.mark.slow,
        ),
        "raise KeyboardInterrupt",
    ],
)
def test_a_script_ends_as_it_would(tmp_path: Path, source: str) -> None:
    """Exit code, output and traceback are those of the bare script."""
    (tmp_path / "s.py").write_text(source)
    plain, run = python("s.py", cwd=tmp_path), through_run("s.py", cwd=tmp_path)
    assert run.returncode % 128 == abs(plain.returncode) % 128  # killed by a signal, or 128 and the signal
    assert run.stdout == plain.stdout
    said = [line for line in run.stderr.splitlines(keepends=True) if not line.startswith("lightning-perf run:")]
    assert "".join(said) == plain.stderr


@pytest.mark.ddp
def test_every_rank_of_a_script_launch_is_treated_alike(tmp_path: Path) -> None:
    """Lightning starts the bare script again for rank one; it comes through ``run`` nevertheless."""
    (tmp_path / "trains.py").write_text(TRAINS)
    options = ("--callbacks", "OptimizerFactory", "--callbacks.optimizer=adamw", "--strategy", "perf_ddp")
    done = python("-m", "lightning_perf", "run", *options, "trains.py", "2", "ddp", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(done.stdout.splitlines()) == [f"['OptimizerFactory'] PerfDDP {rank}" for rank in (0, 1)]
    assert done.stderr.count("added OptimizerFactory(optimizer=adamw)") == 1
    assert done.stderr.count("strategy ddp replaced by perf_ddp") == 1


@pytest.mark.parametrize("how", ["script", "hydra"])
def test_a_relaunch_keeps_the_options(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The words for a further rank, with the bare script's and with hydra's command."""
    import lightning.pytorch.strategies.launchers.subprocess_script as launcher

    monkeypatch.setattr(launcher, "_hydra_subprocess_cmd", lambda rank: (["py", "-m", "pack", "x=1"], "/there"))
    undo = Additions(lossless=True, words=["--lossless"]).install()
    try:
        if how == "hydra":
            found: Any = launcher._hydra_subprocess_cmd(1)
            assert found == (["py", "-m", "lightning_perf", "run", "--lossless", "-m", "pack", "x=1"], "/there")
        else:
            words = launcher._basic_subprocess_cmd()
            assert list(words[:5]) == [sys.executable, "-m", "lightning_perf", "run", "--lossless"]
    finally:
        undo()


def test_words_are_told_apart() -> None:
    options = "--callbacks A,B --callbacks.x=1 --callbacks C --callbacks.y 2 --strategy perf_ddp"
    found = read_words([*options.split(), "s.py", "-m"])
    assert found.callbacks == [("A", {}), ("B", {"x": "1"}), ("C", {"y": "2"})]
    assert (found.target, found.rest, found.strategy, found.is_module) == ("s.py", ["-m"], "perf_ddp", False)
    assert found.words == options.split()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--callbacks Foo s.py", "unknown callback 'Foo'; the callbacks are AutoMixedPrecision, ChannelPruning"),
        ("--callbacks OptimizerFactory --callbacks.lrr 1 s.py", "no argument 'lrr'; it takes ema, groups, lr"),
        ("--callbacks OptimizerFactory --callbacks.lr abc s.py", 'Parser key "lr"'),
        ("--callbacks OptimizerFactory --callbacks.optimizer adamm s.py", "adamm"),
        ("--callbacks.lr 1 s.py", "--callbacks.lr belongs to no callback; name it before"),
        ("--callbacks , s.py", "names no callback"),
        ("--strategy fsdp s.py", "preset='fsdp' is unknown; the presets are perf_ddp"),
        ("--losless s.py", "unknown option '--losless'"),
        ("--lossless", "no script was given"),
        ("--lossless -m", "-m lacks its module"),
        ("--callbacks", "--callbacks lacks its value"),
        ("--lossless none.py", "'none.py' does not exist"),
        ("--lossless .", "'.' is a folder"),
        ("--lossless sh", "is not a Python script"),
        ("s.py", "nothing to add"),
    ],
)
def test_mistakes_are_named(
    words: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.py").write_text("raise SystemError('this must not run')")
    with pytest.raises(SystemExit) as done:
        main(["run", *words.split()])
    assert done.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", callback_classes())
def test_every_callback_has_a_name_and_a_help(name: str) -> None:
    """Built from its name alone, and explained in the words of its docstring."""
    required = {"ChannelPruning": {"target": "0.8"}}
    assert isinstance(CallbackSpec.parse(name, required.get(name, {})).build(), getattr(lp, name))
    assert (getattr(lp, name).__doc__ or "").partition("\n")[0].split(".")[0][:40] in help_of([name]).replace("\n", " ")
