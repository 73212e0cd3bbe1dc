"""All cases of a world size in one process group, one process a rank; started by ``test_ranks.py``."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import lightning.pytorch as ns
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.optim import ZeroRedundancyOptimizer

import lightning_perf as lp
from lightning_perf.host import MisconfigurationException
from lightning_perf.strategies.exchange import Exchange
from lightning_perf.strategies.local_sgd import adopt_state
from lightning_perf.strategies.presets import PRESETS
from tests.ranks import run_cases
from tests.strategies.modules import make, rows


@dataclass(frozen=True)
class Case:
    """A module, how it is trained, and what DDP itself is told."""

    name: str
    kind: str = "Plain"
    optimizer: str = "adamw"
    trainer: dict[str, Any] = field(default_factory=dict)
    ddp: dict[str, Any] = field(default_factory=dict)
    callbacks: Callable[[], list[Any]] = list


CASES = (
    Case("sgd", optimizer="sgd"),
    Case("adamw_clipped", trainer={"gradient_clip_val": 0.1}),
    Case("accumulated", trainer={"accumulate_grad_batches": 2}),
    Case("two_optimizers", "TwoOptimizers"),
    Case("unused", "Unused", ddp={"find_unused_parameters": True}),
    Case("tied", "Tied"),
    Case("complex", "Complex", "sgd"),
    Case("changing_buffers", "Changing"),
    Case("frozen_norm", "Frozen"),
    Case("teacher", "Teacher", ddp={"find_unused_parameters": True}),
    Case("fast_logging", callbacks=lambda: [lp.FastLogging()]),
    Case("lossless", callbacks=lp.lossless),
    Case("no_buffers", "Frozen", ddp={"forward_sync_buffers": False}),
)


def fit(case: Case, strategy: Any, folder: Path, **arguments: Any) -> tuple[Any, Any]:
    """A module trained for two epochs with validation, and its Trainer."""
    module = make(case.kind, ns, optimizer=case.optimizer)
    torch.manual_seed(11 + int(os.environ["RANK"]))
    ckpt_path = arguments.pop("ckpt_path", None)
    trainer = trainer_of(strategy, folder, **{"callbacks": case.callbacks(), **case.trainer, **arguments})
    trainer.fit(module, rows(), rows(8, shuffle=False), ckpt_path=ckpt_path)
    return module, trainer


def flat(tensors: Any) -> torch.Tensor:
    real = [torch.view_as_real(tensor) if tensor.is_complex() else tensor for tensor in tensors]
    return torch.cat([tensor.detach().double().flatten() for tensor in real])


def everywhere(flag: bool) -> bool:
    """Whether it holds on every rank."""
    vote = torch.tensor([int(flag)])
    dist.all_reduce(vote, op=dist.ReduceOp.MIN)
    return bool(vote.item())


def ranks_are_equal(tensors: Any) -> bool:
    mine = flat(tensors)
    gathered = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, mine)
    return all(torch.equal(gathered[0], other) for other in gathered)


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """How often each collective is called from Python."""
    counts: Counter[str] = Counter()

    def wrap(name: str) -> Callable[..., Any]:
        original = getattr(dist, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return original(*args, **kwargs)

        return call

    names = ("all_reduce", "broadcast", "barrier", "_broadcast_coalesced", "isend")
    with ExitStack() as patches:
        for name in names:
            patches.enter_context(mock.patch.object(dist, name, wrap(name)))
        yield counts


def check_exact(case: Case, preset: str, folder: Path) -> dict[str, Any]:
    """The preset beside plain ddp: parameters, losses and metrics on every rank; buffers where the checkpoint is written."""
    plain, trainer = fit(case, DDPStrategy(**case.ddp), folder)
    with counted() as counts:
        perf, perf_trainer = fit(case, lp.PerfDDP(preset=preset, **case.ddp), folder)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    found = {name: float(value) for name, value in perf_trainer.callback_metrics.items()}
    return {
        "parameters": everywhere(torch.equal(flat(plain.parameters()), flat(perf.parameters()))),
        "buffers": everywhere(dist.get_rank() > 0 or torch.equal(flat(plain.buffers()), flat(perf.buffers()))),
        "losses": everywhere(plain.seen == perf.seen),
        "metrics": everywhere(metrics == found),
        "apart": {name: (metrics[name], found.get(name)) for name in metrics if metrics[name] != found.get(name)},
        "equal_ranks": ranks_are_equal(perf.parameters()),
        "counts": dict(counts),
        "messages": perf_trainer.strategy.messages,
    }


EXACT = (
    *(("perf_ddp", case.name) for case in CASES),
    *(("perf_ddp_static", name) for name in ("sgd", "accumulated", "unused", "two_optimizers")),
    *(("perf_ddp_overlap", name) for name in ("adamw_clipped", "accumulated")),
)
NEAR = (
    *(("perf_ddp_bf16", name) for name in ("sgd", "accumulated", "two_optimizers", "complex")),
    *(("perf_ddp_int8", name) for name in ("sgd", "accumulated", "two_optimizers", "complex")),
    *(("perf_local_sgd", name) for name in ("sgd", "accumulated", "two_optimizers", "unused")),
)
CASE = {case.name: case for case in CASES}
#: Two synchronous steps and then averages every third, so that validations and checkpoints fall between two averages.
LOCAL = {"average_every": 4, "warmup_steps": 2}


class EqualRanks(ns.Callback):
    """Notes at every validation, checkpoint and at the end whether the ranks hold the same weights."""

    def __init__(self) -> None:
        self.equal: list[bool] = []

    def note(self, trainer: Any) -> None:
        self.equal.append(ranks_are_equal(trainer.lightning_module.parameters()))

    def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.note(trainer)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.note(trainer)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Any) -> None:
        self.note(trainer)


class Parted(ns.Callback):
    """Notes after every batch whether the ranks hold the same weights."""

    def __init__(self) -> None:
        self.equal: list[bool] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.equal.append(ranks_are_equal(trainer.lightning_module.parameters()))


def options(preset: str) -> dict[str, Any]:
    return LOCAL if preset == "perf_local_sgd" else {}


def check_near(preset: str, case: Case, folder: Path) -> dict[str, Any]:
    """Ranks are equal wherever somebody looks; the bytes that Python's collectives send are counted."""
    folder = folder / f"{preset}-{case.name}"
    saver = ModelCheckpoint(folder, save_top_k=-1, every_n_train_steps=5)
    equal, parted = EqualRanks(), Parted()
    plain, _ = fit(case, DDPStrategy(**case.ddp), folder)
    with sent() as sizes:
        perf, trainer = fit(
            case,
            lp.PerfDDP(preset=preset, **case.ddp, **options(preset)),
            folder,
            enable_checkpointing=True,
            val_check_interval=0.5,
            callbacks=[equal, parted, saver],
        )
    return {
        "equal": equal.equal,
        "parted": parted.equal,
        "buffers": ranks_are_equal(perf.buffers()),
        "distance": float((flat(plain.parameters()) - flat(perf.parameters())).norm()),
        "moved": float((flat(make(case.kind, ns).parameters()) - flat(perf.parameters())).norm()),
        "sent": sizes,
        "sizes": [parameter.numel() for parameter in perf.parameters()],
        "messages": trainer.strategy.messages,
    }


@contextmanager
def sent() -> Iterator[list[int]]:
    """Bytes of every message that this process sends to another one."""
    sizes: list[int] = []
    original = dist.isend

    def send(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        sizes.append(tensor.numel() * tensor.element_size())
        return original(tensor, *args, **kwargs)

    with mock.patch.object(dist, "isend", send):
        yield sizes


def check_exchange(compression: str, folder: Path) -> dict[str, Any]:
    """The bits of an all-gather, in one bucket or many, and where DDP calls all hooks behind the first backward."""

    def gathered(self: Exchange, bucket: Any, message: Any, finish: Any) -> Any:
        return self._gather(message, finish)

    def go(case: Case = CASE["sgd"], **ddp: Any) -> tuple[torch.Tensor, int]:
        with sent() as sizes:
            module, _ = fit(case, lp.PerfDDP(preset=f"perf_ddp_{compression}", **ddp), folder)
        return flat(module.parameters()), len(sizes)

    with mock.patch.object(Exchange, "start", gathered):
        plain, none = go()
    unused, ddp = Case("unused_first", "UnusedFirst", "sgd"), {"find_unused_parameters": True, "bucket_cap_mb": 1e-6}
    (whole, _), (skipped, few) = go(unused, **ddp), go(unused, skip_all_reduce_unused_params=True, **ddp)
    found = {"one": go(), "many": go(bucket_cap_mb=1e-6), "static": go(static_graph=True, bucket_cap_mb=1e-6)}
    return {
        "equal": {name: everywhere(torch.equal(plain, weights)) for name, (weights, _) in found.items()},
        "skipped": everywhere(torch.equal(whole, skipped)) and not few,
        "messages": {"gathered": none, **{name: count for name, (_, count) in found.items()}},
    }


def check_resume(folder: Path) -> dict[str, Any]:
    """int8 with error feedback: a run resumed after epoch 1 equals the uninterrupted one, on every rank."""
    case = CASE["sgd"]

    def go(where: str, **arguments: Any) -> Any:
        saver = ModelCheckpoint(folder / where, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
        callbacks = [lp.ExactResume(), saver]
        strategy = lp.PerfDDP(preset="perf_ddp_int8")
        return fit(case, strategy, folder, enable_checkpointing=True, max_epochs=3, callbacks=callbacks, **arguments)[0]

    whole = go("whole")
    path = folder / "whole" / "epoch=1.ckpt"
    resumed = go("resumed", ckpt_path=str(path))
    kept = torch.load(path, weights_only=True)
    plain, _ = fit(case, "ddp", folder, max_epochs=3, ckpt_path=str(path))  # strict load without us
    return {
        "equal": everywhere(torch.equal(flat(whole.parameters()), flat(resumed.parameters()))),
        "residuals": len(kept["lightning_perf_ddp"]["residuals"]),
        "nonzero": any(float(value.abs().max()) > 0 for value in kept["lightning_perf_ddp"]["residuals"][1].values()),
        "plain": ranks_are_equal(plain.parameters()),
    }


def check_again(folder: Path) -> dict[str, Any]:
    """Two fits and a validation by one Trainer, beside the same with plain ddp."""
    found = []
    for strategy in (DDPStrategy(), lp.PerfDDP()):
        module, trainer = fit(CASE["sgd"], strategy, folder, max_epochs=1)
        trainer.fit_loop.max_epochs = 2
        trainer.fit(module, rows(), rows(8, shuffle=False))
        metrics = trainer.validate(module, rows(8, shuffle=False), verbose=False)
        found.append((flat(module.parameters()).tolist(), module.seen, metrics))
    return {"equal": everywhere(found[0] == found[1])}


def check_adopted_state(folder: Path) -> dict[str, Any]:
    """Optimizer state of rank 0 on all of them, tensors and numbers, as if it had been sent whole; or none of it."""
    rank, weights = dist.get_rank(), [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2, 2))]
    optimizer = torch.optim.AdamW(weights, lr=0.1)
    for step in range(2 + rank):
        for weight in weights:
            weight.grad = torch.full_like(weight, 1.0 + rank + step)
        optimizer.step()
    optimizer.param_groups[0]["d"] = 0.5 + rank
    optimizer.state[weights[0]]["more"] = [torch.full((2,), rank), {"count": rank}]
    whole = [optimizer.state_dict()]
    dist.broadcast_object_list(whole, src=0)
    before = str(optimizer.state_dict())
    adopted = adopt_state([optimizer], torch.device("cpu"))
    equal = str(optimizer.state_dict()) == str(whole[0])
    if rank == 1:
        del optimizer.state[weights[1]]
    kept = str(optimizer.state_dict())
    refused = not adopt_state([optimizer], torch.device("cpu")) and str(optimizer.state_dict()) == kept
    return {
        "adopted": everywhere(adopted and equal),
        "differed": not everywhere(before == str(whole[0])),
        "refused": everywhere(refused),
    }


class Stream(torch.utils.data.IterableDataset):
    """Rows without a length, so many on each rank."""

    def __init__(self, *counts: int) -> None:
        self.counts = counts

    def __iter__(self) -> Iterator[Any]:
        count = self.counts[dist.get_rank()]
        return iter([(torch.ones(6) * index, torch.ones(1), torch.tensor(index)) for index in range(count)])


def check_uneven(folder: Path, sized: bool) -> dict[str, Any]:
    """Ranks with unequal numbers of batches end their epochs together."""
    rank = dist.get_rank()
    loader = rows(8 if rank == 0 else 14) if sized else torch.utils.data.DataLoader(Stream(6, 10), batch_size=2)
    module = make("Plain", ns)
    trainer = trainer_of("perf_ddp", folder, use_distributed_sampler=False)
    trainer.fit(module, loader, rows(8, shuffle=False))
    return {"steps": trainer.global_step, "equal": ranks_are_equal(module.parameters())}


def check_uneven_validation(folder: Path) -> dict[str, Any]:
    """10 and 12 batches, whose halves differ: both ranks validate after the same ones; a number of batches stays."""
    module, found = make("Plain", ns), {}
    for name, arguments in {
        "half": {"val_check_interval": 0.5},
        "total": {"val_check_interval": 15, "check_val_every_n_epoch": None},
    }.items():
        seen = Seen()
        trainer = trainer_of("perf_ddp", folder, use_distributed_sampler=False, callbacks=[seen], **arguments)
        trainer.fit(module, rows(24 if dist.get_rank() == 0 else 20), rows(8, shuffle=False))
        found[name] = {"steps": trainer.global_step, "validated": gathered(seen.steps)}
    return found


def check_uneven_resume(folder: Path) -> dict[str, Any]:
    """A checkpoint of the last batch of a shortened epoch, by the rank with more: resumed, it is the whole run."""
    folder = folder / "uneven_resume"

    def go(**arguments: Any) -> Any:
        saver = ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=10)
        trainer = trainer_of(
            "perf_ddp", folder, use_distributed_sampler=False, enable_checkpointing=True, callbacks=[saver]
        )
        loader = rows(24 if dist.get_rank() == 0 else 20, shuffle=False)
        trainer.fit(make("Plain", ns), loader, rows(8, shuffle=False), **arguments)
        return trainer

    go()
    trainer = go(ckpt_path=str(folder / "step=10.ckpt"))
    ended = [trainer.global_step, trainer.current_epoch, trainer.fit_loop.total_batch_idx + 1]
    return {"ended": gathered(ended), "equal": ranks_are_equal(trainer.lightning_module.parameters())}


def check_uneven_limited(folder: Path) -> dict[str, Any]:
    """Streams of 3 and 5 batches under a limit of 4, and of 5 and 6."""
    found = {}
    for counts in ((6, 10), (10, 12)):
        loader = torch.utils.data.DataLoader(Stream(*counts), batch_size=2)
        trainer = trainer_of("perf_ddp", folder, use_distributed_sampler=False, limit_train_batches=4)
        trainer.fit(make("Plain", ns), loader, rows(8, shuffle=False))
        found[str(counts[0])] = gathered(trainer.global_step)
    return found


class Seen(ns.Callback):
    """Notes the steps at which validation starts."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self.steps.append(trainer.global_step)


def gathered(mine: Any) -> list[Any]:
    """Everybody's, in the order of ranks."""
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return everyone


def check_evaluation(preset: str, folder: Path) -> dict[str, Any]:
    """Predictions of every rank, interleaved, are the dataset in order; ``test`` sees every sample."""
    module = make("Plain", ns)
    trainer = trainer_of(preset, folder)
    batches = trainer.predict(module, rows(10, shuffle=False))
    trainer.test(module, rows(8, shuffle=False), verbose=False)
    mine = [torch.cat(batches).tolist(), sorted(module.seen)]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return {"predicted": [one[0] for one in everyone], "tested": [one[1] for one in everyone]}


def check_hook(folder: Path) -> dict[str, Any]:
    """A hook of the user's own is called on gloo, where Lightning drops it."""
    calls = []
    group: Any = dist.group.WORLD

    def hook(state, bucket):  # DDP compares annotations with its own classes
        calls.append(bucket.index())
        return default_hooks.allreduce_hook(group, bucket)

    plain, _ = fit(CASE["sgd"], "ddp", folder)
    perf, _ = fit(CASE["sgd"], lp.PerfDDP(ddp_comm_hook=hook), folder)
    return {"calls": len(calls), "equal": torch.equal(flat(plain.parameters()), flat(perf.parameters()))}


def check_refusals(folder: Path) -> dict[str, Any]:
    """What is refused before the first step, and with which words."""

    def frozen() -> Any:
        return make("Plain", ns).requires_grad_(False)

    def with_optimizer(make_optimizer: Callable[[Any], Any]) -> Any:
        module = make("Plain", ns)
        module.configure_optimizers = lambda: make_optimizer(module.parameters())
        return module

    def sparse() -> Any:
        module = make("Plain", ns)
        module.table = torch.nn.Embedding(4, 2, sparse=True)
        return module

    attempts: dict[str, tuple[Any, Callable[[], Any]]] = {
        "no_parameters": ("perf_ddp", frozen),
        "lbfgs": ("perf_ddp_int8", lambda: with_optimizer(torch.optim.LBFGS)),
        "zero": (
            "perf_local_sgd",
            lambda: with_optimizer(lambda p: ZeroRedundancyOptimizer(p, torch.optim.SGD, lr=0.1)),
        ),
        "sparse": ("perf_ddp_int8", sparse),
        "nccl": (lp.PerfDDP(process_group_backend="nccl"), lambda: make("Plain", ns)),
        "world_size": ("perf_ddp", lambda: make("Plain", ns)),
    }
    said = {}
    for name, (strategy, make_module) in attempts.items():
        patch = mock.patch.object(dist, "get_world_size", return_value=7) if name == "world_size" else nullcontext()
        try:
            with patch:
                trainer_of(strategy, folder).fit(make_module(), rows())
        except MisconfigurationException as error:
            said[name] = str(error)
    return said


def trainer_of(strategy: Any, folder: Path, **arguments: Any) -> Any:
    return ns.Trainer(
        **{
            "max_epochs": 2,
            "accelerator": "cpu",
            "devices": int(os.environ["WORLD_SIZE"]),
            "strategy": strategy,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": folder,
            **arguments,
        }
    )


def checks(folder: Path) -> dict[str, Callable[[], Any]]:
    """Every case by name, in the order in which they run."""
    cases: dict[str, Callable[[], Any]] = {}
    for preset, name in EXACT:
        cases[f"{preset}-{name}"] = lambda preset=preset, name=name: check_exact(CASE[name], preset, folder)
    for preset, name in NEAR:
        cases[f"{preset}-{name}"] = lambda preset=preset, name=name: check_near(preset, CASE[name], folder)
    for compression in ("bf16", "int8"):
        cases[f"exchange-{compression}"] = lambda compression=compression: check_exchange(compression, folder)
    cases["resume"] = lambda: check_resume(folder / "resume")
    cases["again"] = lambda: check_again(folder)
    cases["uneven_sized"] = lambda: check_uneven(folder, True)
    cases["uneven_stream"] = lambda: check_uneven(folder, False)
    cases["uneven_validation"] = lambda: check_uneven_validation(folder)
    cases["uneven_resume"] = lambda: check_uneven_resume(folder)
    cases["uneven_limited"] = lambda: check_uneven_limited(folder)
    cases["adopted_state"] = lambda: check_adopted_state(folder)
    cases["hook"] = lambda: check_hook(folder)
    cases["refusals"] = lambda: check_refusals(folder)
    for preset in PRESETS:
        cases[f"evaluation-{preset}"] = lambda preset=preset: check_evaluation(preset, folder)
    return cases


def main(out: str, *only: str) -> None:
    path = Path(out)
    run_cases({name: case for name, case in checks(path.parent).items() if not only or name in only}, path)


if __name__ == "__main__":
    main(*sys.argv[1:])
