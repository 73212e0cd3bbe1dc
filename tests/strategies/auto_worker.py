"""All cases of ``perf_ddp_auto`` in one process group, one process a rank; started by ``test_auto_ranks.py``."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import lightning.pytorch as ns
import pytorch_lightning
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException

import lightning_perf as lp
from lightning_perf.strategies.auto_understudy import Understudy
from lightning_perf.strategies.presets import POOLS
from tests.ranks import run_cases
from tests.strategies.modules import make, rows
from tests.strategies.worker import CASE, Case, everywhere, flat, ranks_are_equal, trainer_of

#: Fake seconds of a step by candidate; nobody is faster than ddp unless a case says so.
EVEN: dict[str, float] = {row.name: 1.0 for row in POOLS["near"]} | {"no exchange": 0.2}
#: Eleven epochs of six batches: longer than the trials.
LONG = {"max_epochs": 11}


@contextmanager
def fake_clock(seconds: Mapping[str, float]) -> Iterator[list[str]]:
    """Steps are taken for real, and last as long as ``seconds`` says; yields the names in the order of the steps."""
    original, taken = Understudy.step, []

    def step(self: Understudy, batch: Any, index: int) -> float:
        ticks = iter((0.0, seconds[self.name]))
        taken.append(self.name)
        return original(self, batch, index, lambda: next(ticks))

    with mock.patch.object(Understudy, "step", step):
        yield taken


def fastest(name: str, seconds: float = 0.5) -> dict[str, float]:
    return {**EVEN, name: seconds} if name != "ddp" else EVEN


class Watch(ns.Callback):
    """Which samples came in which order, how often hooks were called, and the state at the end."""

    def __init__(self) -> None:
        self.samples: list[list[int]] = []
        self.calls: dict[str, int] = {}

    def count(self, name: str) -> None:
        self.calls[name] = self.calls.get(name, 0) + 1

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.samples.append([batch_idx, *batch[2].tolist()])

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        self.count("on_before_backward")

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.count("on_before_optimizer_step")

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.rng = torch.get_rng_state()
        self.steps = trainer.global_step
        self.states = [state for optimizer in trainer.optimizers for state in optimizer.state_dict()["state"].values()]


def fit(case: Case, strategy: Any, folder: Path, loader: Any = None, **arguments: Any) -> tuple[Any, Any, Watch]:
    module = make(case.kind, ns, optimizer=case.optimizer)
    torch.manual_seed(11 + int(os.environ["RANK"]))
    watch = Watch()
    ckpt_path = arguments.pop("ckpt_path", None)
    callbacks = [watch, *case.callbacks(), *arguments.pop("callbacks", [])]
    trainer = trainer_of(strategy, folder, **{**LONG, **case.trainer, **arguments, "callbacks": callbacks})
    trainer.fit(module, loader or rows(), rows(8, shuffle=False), ckpt_path=ckpt_path)
    return module, trainer, watch


def same_states(mine: list[Any], other: list[Any]) -> bool:
    """Whether two optimizers hold the same, bit for bit."""
    pairs = zip(mine, other, strict=True)
    return all(a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a) for a, b in pairs)


def compared(one: tuple[Any, Any, Watch], other: tuple[Any, Any, Watch]) -> dict[str, Any]:
    """What must be alike on every rank; buffers where the checkpoint is written."""
    (module, trainer, watch), (again, trainer_again, watch_again) = one, other
    return {
        "parameters": everywhere(torch.equal(flat(module.parameters()), flat(again.parameters()))),
        "buffers": everywhere(dist.get_rank() > 0 or torch.equal(flat(module.buffers()), flat(again.buffers()))),
        "losses": everywhere(module.seen == again.seen),
        "metrics": everywhere(dict(trainer.callback_metrics) == dict(trainer_again.callback_metrics)),
        "samples": everywhere(watch.samples == watch_again.samples),
        "hooks": everywhere(watch.calls == watch_again.calls and watch.steps == watch_again.steps),
        "states": everywhere(same_states(watch.states, watch_again.states) and bool(watch.states)),
        "rng": everywhere(torch.equal(watch.rng, watch_again.rng)),
        "equal_ranks": ranks_are_equal(again.parameters()),
    }


def check(case: Case, winner: str, folder: Path, allow: str = "exact") -> dict[str, Any]:
    """auto with this winner, beside the winner used directly (which for the exact ones is plain ddp as well)."""
    near = allow == "near"
    direct = lp.PerfDDP(preset=winner, **case.ddp) if near else DDPStrategy(**case.ddp)
    longer = {"max_epochs": 21} if case.name == "accumulated" else {}
    plain = fit(case, direct, folder, **longer)
    with fake_clock(fastest(winner)) as taken:
        auto = fit(case, lp.PerfDDP(preset="perf_ddp_auto", allow=allow, **case.ddp), folder, **longer)
    strategy = auto[1].strategy
    return {
        "alike": compared(plain, auto),
        "chosen": strategy.choice.name,
        "acting": strategy.acting.name,
        "verdicts": {trial.name: trial.verdict for trial in strategy.choice.trials},
        "messages": strategy.messages,
        "steps": [strategy.choice.steps, len(taken)],
    }


def check_disagreeing(folder: Path) -> dict[str, Any]:
    """Each rank finds another preset the fastest; what is slow anywhere is slow."""
    mine = {**EVEN, "perf_ddp": 0.5, "perf_ddp_static": 0.3}
    if dist.get_rank() == 1:
        mine = {**EVEN, "perf_ddp": 0.7, "perf_ddp_overlap": 0.2}
    with fake_clock(mine):
        _, trainer, _ = fit(CASE["sgd"], "perf_ddp_auto", folder)
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, [trainer.strategy.choice.name, str(trainer.strategy.choice)])
    return {"chosen": [one[0] for one in everyone], "same_table": everyone[0] == everyone[1]}


def check_hardly_faster(folder: Path) -> dict[str, Any]:
    """Four per cent, and never any noise."""
    with fake_clock({**EVEN, "perf_ddp": 0.96}):
        _, trainer, _ = fit(CASE["sgd"], "perf_ddp_auto", folder)
    return {"chosen": trainer.strategy.choice.name, "verdict": trainer.strategy.choice.trials[2].verdict}


def check_nothing_to_gain(folder: Path) -> dict[str, Any]:
    """Where no exchange at all would gain three per cent, no preset is tried."""
    with fake_clock({**fastest("perf_ddp"), "no exchange": 0.97}) as taken:
        _, trainer, _ = fit(CASE["sgd"], "perf_ddp_auto", folder)
    return {"chosen": trainer.strategy.choice.name, "taken": sorted(set(taken)), "text": str(trainer.strategy.choice)}


def check_real_clock(folder: Path) -> dict[str, Any]:
    """Whatever this machine finds, in the other namespace too."""
    plain = fit(CASE["sgd"], "ddp", folder)
    auto = fit(CASE["sgd"], "perf_ddp_auto", folder)
    module = make("Plain", pytorch_lightning)
    trainer: Any = pytorch_lightning.Trainer(
        accelerator="cpu", devices=2, strategy="perf_ddp_auto", logger=False, enable_checkpointing=False, max_epochs=11,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module, rows())
    return {
        "alike": compared(plain, auto),
        "steps": auto[1].strategy.choice.steps,
        "other": trainer.strategy.choice.steps,
    }


def check_untried(folder: Path) -> dict[str, Any]:
    """What cannot be tried says so, and trains as ddp does."""

    class Locked(torch.nn.Identity):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("cannot copy a lock")

    said = {}
    _, trainer, _ = fit(CASE["sgd"], "perf_ddp_auto", folder, max_epochs=2)
    said["short"] = trainer.strategy.choice.reason
    module = make("Plain", ns)
    if dist.get_rank() == 1:
        module.lock = Locked()
    trainer = trainer_of("perf_ddp_auto", folder, **LONG)
    trainer.fit(module, rows())
    strategy: Any = trainer.strategy
    said["uncopied"] = strategy.choice.reason
    return {"said": said, "equal": ranks_are_equal(module.parameters())}


class Once:
    """Batches that can be taken once; knows how many were."""

    def __init__(self) -> None:
        self.taken = 0

    def __iter__(self) -> Once:
        return self

    def __next__(self) -> Any:
        self.taken += 1
        if self.taken > 70:
            raise StopIteration
        torch.manual_seed(self.taken + 100 * dist.get_rank())
        return torch.randn(2, 6), torch.randn(2, 1), torch.tensor([self.taken])


def check_once(folder: Path) -> dict[str, Any]:
    """A loader that cannot be read twice and has no length: every batch trains the module, once and in order."""
    found = []
    for strategy in ("ddp", "perf_ddp_auto"):
        with fake_clock(fastest("perf_ddp")):
            found.append(fit(CASE["sgd"], strategy, folder, Once(), max_epochs=1, max_steps=65))
    auto = found[1]
    order = [sample[1] for sample in auto[2].samples]
    return {"alike": compared(*found), "order": order == list(range(1, 66)), "chosen": auto[1].strategy.choice.name}


def check_resume(folder: Path) -> dict[str, Any]:
    """A run that took int8 goes on with it, with its error feedback, and without trials."""
    folder = folder / "resume"

    def go(where: str, **arguments: Any) -> Any:
        saver = ModelCheckpoint(folder / where, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
        strategy = lp.PerfDDP(preset="perf_ddp_auto", allow="near")
        with fake_clock(fastest("perf_ddp_int8")) as taken:
            module, trainer, _ = fit(
                CASE["sgd"],
                strategy,
                folder,
                enable_checkpointing=True,
                callbacks=[lp.ExactResume(), saver],
                **arguments,
            )
        return module, trainer.strategy, taken

    whole, _, _ = go("whole")
    resumed, strategy, taken = go("resumed", ckpt_path=str(folder / "whole" / "epoch=8.ckpt"))
    return {
        "equal": everywhere(torch.equal(flat(whole.parameters()), flat(resumed.parameters()))),
        "chosen": strategy.choice.name,
        "tried": len(taken),
    }


def check_again(folder: Path) -> dict[str, Any]:
    """Two fits and a validation by one Trainer, beside the same with plain ddp."""
    found = []
    for strategy in ("ddp", "perf_ddp_auto"):
        with fake_clock(fastest("perf_ddp")):
            module, trainer, _ = fit(CASE["sgd"], strategy, folder)
            trainer.fit_loop.max_epochs = 22
            trainer.fit(module, rows(), rows(8, shuffle=False))
        metrics = trainer.validate(module, rows(8, shuffle=False), verbose=False)
        found.append((flat(module.parameters()).tolist(), module.seen, metrics))
    return {"equal": everywhere(found[0] == found[1]), "said": len(trainer.strategy.messages)}


def check_sigterm(folder: Path) -> dict[str, Any]:
    """Told to end in the midst of the trials, on one rank: all end before the first step, and Lightning's own is back."""

    def step(self: Understudy, batch: Any, index: int) -> float:
        if dist.get_rank() == 1 and index == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, index, iter(range(10)).__next__)

    original, ended = Understudy.step, False
    trainer = trainer_of("perf_ddp_auto", folder, **LONG)
    strategy = trainer.strategy
    try:
        with mock.patch.object(Understudy, "step", step):
            trainer.fit(make("Plain", ns), rows())
    except SIGTERMException:
        ended = True
    return {"ended": everywhere(ended), "steps": trainer.global_step, "own": trainer.strategy is strategy}


EXACT = (
    *(("sgd", winner) for winner in ("ddp", "perf_ddp", "perf_ddp_static", "perf_ddp_overlap")),
    *((name, "perf_ddp") for name in (
        "adamw_clipped", "accumulated", "two_optimizers", "unused", "changing_buffers", "lossless",
    )),
)  # fmt: skip
NEAR = (("sgd", "perf_ddp_bf16"), ("adamw_clipped", "perf_ddp_int8"))


def checks(folder: Path) -> dict[str, Callable[[], Any]]:
    """Every case by name, in the order in which they run."""
    cases: dict[str, Callable[[], Any]] = {}
    for name, winner in EXACT:
        cases[f"{winner}-{name}"] = lambda name=name, winner=winner: check(CASE[name], winner, folder)
    for name, winner in NEAR:
        cases[f"{winner}-{name}"] = lambda name=name, winner=winner: check(CASE[name], winner, folder, "near")
    for other in (
        check_disagreeing, check_hardly_faster, check_nothing_to_gain, check_real_clock, check_untried, check_once,
        check_resume, check_again, check_sigterm,
    ):  # fmt: skip
        cases[other.__name__.removeprefix("check_")] = lambda other=other: other(folder)
    return cases


def main(out: str, *only: str) -> None:
    path = Path(out)
    run_cases({name: case for name, case in checks(path.parent).items() if not only or name in only}, path)


if __name__ == "__main__":
    main(*sys.argv[1:])
