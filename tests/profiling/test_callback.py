"""ThroughputProfiler in real fits: nothing changes, phases add up, figures are right, files are written, all is undone."""

from __future__ import annotations

import copy
import json
import pickle
import re
from types import ModuleType
from typing import Any

import pytest
import torch

import lightning_perf as lp
from lightning_perf.profiling import callback_looks, phases
from lightning_perf.profiling.profile_report import ProfileReport
from lightning_perf.profiling.step_plan import StepPlan
from tests.contract.modules import images, make


def fit(ns: ModuleType, quiet: dict[str, Any], profiler: Any, kind: str = "plain", **arguments: Any) -> Any:
    module = make(kind, ns)
    torch.manual_seed(11)
    others = arguments.pop("others", [])
    trainer = ns.Trainer(**{**quiet, "max_epochs": 2, **arguments}, callbacks=[profiler, *others])
    trainer.fit(module, images(48), images(8, shuffle=False))
    return trainer, module


@pytest.mark.parametrize("kind", ["plain", "manual", "two_optimizers", "raw_step"])
def test_phases_add_up(kind: str, ns: ModuleType, quiet: dict[str, Any]) -> None:
    """Every kind of optimization has its forward, backward and optimizer; phases exclude each other."""
    profiler = lp.ThroughputProfiler(roofline=False)
    fit(ns, quiet, profiler, kind)
    report = profiler.report
    assert report.steps == 24 - 4
    assert set(report.phases) >= {phases.FORWARD, phases.OPTIMIZER, phases.LOGGING, phases.LOOP, phases.VALIDATION}
    assert (phases.BACKWARD in report.phases) == (kind != "raw_step")
    assert sum(report.share(name) for name in report.phases) == pytest.approx(1.0)
    # Training alone, without what lies between the steps, is what the steps took, but for the tail of the last one.
    between = sum(report.phases.get(name, 0.0) for name in phases.BETWEEN_STEPS)
    steps = sum(report.runs[0].samples["step_seconds"])
    assert sum(report.phases.values()) - between == pytest.approx(steps, rel=0.1)


def test_samples_per_second(quiet: dict[str, Any]) -> None:
    """Samples over the seconds of the timed steps, by hand."""
    import lightning.pytorch as ns

    profiler = lp.ThroughputProfiler(roofline=False, flops=False)
    fit(ns, quiet, profiler)
    seconds = profiler.report.runs[0].samples["step_seconds"]
    assert profiler.report.samples_per_second == pytest.approx(4 * len(seconds) / sum(seconds))


def test_results_stay_bit_for_bit(ns: ModuleType, quiet: dict[str, Any]) -> None:
    profiler = lp.ThroughputProfiler(every_n_steps=1)
    _, profiled = fit(ns, quiet, profiler)
    plain = make("plain", ns)
    torch.manual_seed(11)
    trainer = ns.Trainer(**quiet, max_epochs=2)
    trainer.fit(plain, images(48), images(8, shuffle=False))
    assert profiled.losses == plain.losses
    for key, value in plain.state_dict().items():
        assert torch.equal(value, profiled.state_dict()[key]), key


def test_everything_is_undone(ns: ModuleType, quiet: dict[str, Any]) -> None:
    """After the fit no wrap is left on Trainer, loops, loggers or module; copies made meanwhile are plain."""
    copies: list[Any] = []

    class Copier(ns.Callback):  # type: ignore[misc, name-defined]
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            copies.append(copy.deepcopy(pl_module))

    trainer, module = fit(ns, quiet, lp.ThroughputProfiler(roofline=False), others=[Copier()])
    assert "log" not in vars(module)
    assert type(trainer.profiler).__name__ == "PassThroughProfiler"
    loop = trainer.fit_loop
    for target, names in (
        (trainer._logger_connector, ("log_metrics", "on_batch_end", "update_train_step_metrics")),
        (loop, ("setup_data",)),
        (loop.epoch_loop, ("on_run_start",)),
        (loop.epoch_loop.val_loop, ("run",)),
    ):
        assert not set(names) & set(vars(target)), target
    assert vars(copies[-1]).get("log") is None or vars(copies[-1])["log"].__self__ is copies[-1]


@pytest.mark.parametrize("first", [True, False])
def test_beside_fast_logging(first: bool, ns: ModuleType, quiet: dict[str, Any]) -> None:
    """Both stand around ``module.log``; whichever comes first, logging is fast, timed, and taken off again."""
    profiler, fast = lp.ThroughputProfiler(roofline=False), lp.FastLogging()
    module = make("plain", ns)
    callbacks = [profiler, fast] if first else [fast, profiler]
    trainer = ns.Trainer(**quiet, max_epochs=2, callbacks=callbacks)
    trainer.fit(module, images(48), images(8))
    assert fast.messages == ["FastLogging: self.log takes a short path."]
    assert profiler.report.phases[phases.LOGGING] > 0
    assert "log" not in vars(module)
    assert profiler.report.advice == () or all("FastLogging" not in one.lever for one in profiler.report.advice)


@pytest.mark.parametrize("first", [True, False])
def test_an_exception_leaves_a_report_and_no_trace(first: bool, ns: ModuleType, quiet: dict[str, Any]) -> None:
    profiler, fast = lp.ThroughputProfiler(roofline=False), lp.FastLogging()

    class Failing(ns.Callback):  # type: ignore[misc, name-defined]
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 10:
                raise RuntimeError("planted")

    module = make("plain", ns)
    callbacks = [profiler, fast] if first else [fast, profiler]
    trainer = ns.Trainer(**quiet, max_epochs=1, callbacks=[*callbacks, Failing()])
    with pytest.raises(RuntimeError, match="planted"):
        trainer.fit(module, images(48))
    assert profiler.report.steps > 0
    assert "log" not in vars(module)
    assert not hasattr(trainer.profiler, "listeners")
    trainer.fit_loop.epoch_progress.reset()
    again = ns.Trainer(**quiet, max_epochs=1, callbacks=callbacks)
    again.fit(module, images(48))
    assert again.global_step == 12


def test_files_and_round_trip(ns: ModuleType, quiet: dict[str, Any], tmp_path: Any) -> None:
    folder = tmp_path / "profile"
    profiler = lp.ThroughputProfiler(report_dir=str(folder), trace_steps=2)
    fit(ns, quiet, profiler)
    report = profiler.report
    assert ProfileReport.from_json(folder / "profile.json") == report
    page = (folder / "profile.html").read_text()
    assert "Where the time goes" in page
    assert page.count("<svg") >= 2
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    names = {event.get("name", "") for event in events}
    assert any("training_step" in name for name in names)
    assert any(name.startswith("aten::") for name in names)


def test_scalars_go_to_the_loggers(ns: ModuleType, quiet: dict[str, Any], tmp_path: Any) -> None:
    logged: list[dict[str, float]] = []

    class Logger(ns.loggers.CSVLogger):  # type: ignore[misc, name-defined]
        def log_metrics(self, metrics: Any, step: Any = None) -> None:
            logged.append(dict(metrics))

    profiler = lp.ThroughputProfiler(every_n_steps=6, roofline=False)
    fit(ns, quiet, profiler, logger=Logger(tmp_path))
    ours = [metrics for metrics in logged if any(key.startswith("profile/") for key in metrics)]
    assert len(ours) == 4
    assert ours[1]["profile/samples_per_second"] > 0
    shares = {key: value for key, value in ours[1].items() if key.startswith("profile/share/")}
    assert sum(shares.values()) == pytest.approx(1.0)
    assert all(re.fullmatch(r"[\w\-. /]+", key) for key in ours[1]), "what MLflow accepts as a name"
    assert not any(key.startswith("profile/") for key in make("plain", ns).state_dict())


def test_a_line_in_the_progress_bar(ns: ModuleType, quiet: dict[str, Any]) -> None:
    seen: list[dict[str, Any]] = []

    class Bar(ns.callbacks.TQDMProgressBar):  # type: ignore[misc, name-defined]
        def get_metrics(self, trainer: Any, pl_module: Any) -> dict[str, Any]:
            return super().get_metrics(trainer, pl_module)

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            seen.append(self.get_metrics(trainer, pl_module))

    profiler = lp.ThroughputProfiler(every_n_steps=5, roofline=False)
    fit(ns, quiet, profiler, others=[Bar()], enable_progress_bar=True)
    assert "samples/s" in seen[-1]
    assert "data wait" in seen[-1]
    assert "loss" in seen[-1], "the bar's own metrics stay"


def test_a_short_run_still_has_figures(ns: ModuleType, quiet: dict[str, Any]) -> None:
    profiler = lp.ThroughputProfiler(roofline=False)
    fit(ns, quiet, profiler, max_epochs=1, limit_train_batches=3)
    assert profiler.report.steps == 2
    assert profiler.report.flops_per_step is not None


def test_a_loader_without_length(ns: ModuleType, quiet: dict[str, Any]) -> None:
    class Endless(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            return iter((torch.zeros(1, 8, 8), 1) for _ in range(80))

    profiler = lp.ThroughputProfiler(roofline=False)
    trainer = ns.Trainer(**quiet, max_steps=15, callbacks=[profiler])
    trainer.fit(make("plain", ns), torch.utils.data.DataLoader(Endless(), batch_size=4))
    assert profiler.report.samples_per_second is not None
    assert phases.DATA_WAIT in profiler.report.phases


def test_other_stages_say_so(ns: ModuleType, quiet: dict[str, Any]) -> None:
    profiler = lp.ThroughputProfiler()
    ns.Trainer(**quiet, callbacks=[profiler]).validate(make("plain", ns), images(8), verbose=False)
    assert profiler.messages == ["ThroughputProfiler: profiles training; nothing to do in validate."]
    with pytest.raises(RuntimeError, match="no report yet"):
        _ = profiler.report


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"every_n_steps": 0}, "every_n_steps=0"),
        ({"trace_steps": -1}, "trace_steps=-1"),
        ({"trace_steps": 3}, "report_dir="),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        lp.ThroughputProfiler(**arguments)


def test_an_unwritable_folder_fails_before_training(ns: ModuleType, quiet: dict[str, Any], tmp_path: Any) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(lp.report.UnwritableReportError):
        fit(ns, quiet, lp.ThroughputProfiler(report_dir=str(file / "sub")))


def test_pickles_with_a_report(quiet: dict[str, Any]) -> None:
    import lightning.pytorch as ns

    profiler = lp.ThroughputProfiler(roofline=False)
    fit(ns, quiet, profiler)
    again = pickle.loads(pickle.dumps(profiler))
    assert again.report == profiler.report


def test_the_plan_of_steps() -> None:
    plan = StepPlan(flops=True, trace_steps=2)
    roles = [plan.role(index) for index in range(10)]
    assert roles == ["warm-up"] * 2 + ["flops", "memory"] + ["timeline"] * 3 + ["trace"] * 2 + ["timed"]
    assert [StepPlan(flops=False).role(index) for index in (1, 2, 3, 7)] == ["warm-up", "timed", "memory", "timed"]
    plan.short = True
    assert [plan.role(index) for index in range(3)] == ["flops", "timed", "timed"]


def test_peak_memory_belongs_to_the_phase_that_ends(monkeypatch: pytest.MonkeyPatch, quiet: dict[str, Any]) -> None:
    """The allocator is faked: 500 bytes in forward, 900 in backward, 300 elsewhere, and a peak only since the last reset."""
    import lightning.pytorch as ns

    now = {"bytes": 300, "peak": 0}

    class Allocating(type(make("plain", ns))):  # type: ignore[misc]
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            now["peak"] = 500
            return super().training_step(batch, batch_idx)

        def on_after_backward(self) -> None:
            now["peak"] = 900

    monkeypatch.setattr(callback_looks, "peak_bytes", lambda device: max(now.values()))
    monkeypatch.setattr(callback_looks, "reset_peak", lambda device: now.update(peak=0))
    profiler = lp.ThroughputProfiler(roofline=False, flops=False)
    trainer = ns.Trainer(**{**quiet, "max_epochs": 2}, callbacks=[profiler])
    trainer.fit(Allocating(), images())
    memory = profiler.report.memory
    assert (memory[phases.FORWARD], memory[phases.BACKWARD]) == (500, 900)
    assert {memory[name] for name in memory if name not in (phases.FORWARD, phases.BACKWARD)} == {300}
