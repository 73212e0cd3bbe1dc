"""All DDP cases in one two-rank process group: started once per session by ``test_ddp.py``, one process a rank."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as ns
import torch
import torch.distributed as dist

import lightning_perf as lp
from lightning_perf.quantization import preparation
from tests.contract.modules import images, make
from tests.contract.rows import ROWS, Row
from tests.ranks import run_cases


def fit(callbacks: list[Any], folder: Path, kind: str = "plain", **arguments: Any) -> Any:
    module = make(kind, ns)
    torch.manual_seed(11)
    ckpt_path = arguments.pop("ckpt_path", None)
    trainer = ns.Trainer(
        **{
            "max_epochs": 2,
            "accelerator": "cpu",
            "devices": 2,
            "strategy": "ddp",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": folder,
            **arguments,
        },
        callbacks=callbacks,
    )
    trainer.fit(module, images(), images(8, shuffle=False), ckpt_path=ckpt_path)
    return module


def flat(module: Any) -> torch.Tensor:
    return torch.cat([value.detach().double().flatten() for value in module.state_dict().values()])


def ranks_are_equal(module: Any) -> bool:
    """Parameters only: plain DDP leaves the running statistics of batch norms apart under manual optimization."""
    mine = torch.cat([value.detach().flatten() for value in module.parameters()])
    gathered = [torch.empty_like(mine) for _ in range(2)]
    dist.all_gather(gathered, mine)
    return torch.equal(gathered[0], gathered[1])


def check(row: Row, folder: Path) -> dict[str, Any]:
    module = fit([row.make()], folder)
    result: dict[str, Any] = {"equal_ranks": ranks_are_equal(module)}
    if row.lossless:
        plain = fit([], folder)
        result["difference"] = float((flat(module) - flat(plain)).abs().max())
    return result


def check_random_masks(folder: Path) -> dict[str, Any]:
    """Each rank has a seed of its own, as without ``seed_everything``: rank 0's masks hold on both."""

    class Seeds(ns.Callback):
        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
            torch.manual_seed(trainer.global_rank)

    module = fit([Seeds(), lp.MagnitudePruning(0.5, criterion="random", start=0.0)], folder)
    return {"equal_ranks": ranks_are_equal(module), "sparsity": lp.sparsity(module).total}


def check_resume(folder: Path, make_levers: Callable[[], list[Any]] = lp.lossless) -> dict[str, Any]:
    """ExactResume keeps the state of every rank: dropout differs between ranks, so one state would not do."""

    def callbacks(where: str) -> list[Any]:
        saver = ns.callbacks.ModelCheckpoint(folder / where, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
        return [*make_levers(), saver]

    whole = fit(callbacks("a"), folder, enable_checkpointing=True, max_epochs=3)
    torch.manual_seed(99)
    ckpt = str(folder / "a" / "epoch=1.ckpt")
    resumed = fit(callbacks("b"), folder, enable_checkpointing=True, max_epochs=3, ckpt_path=ckpt)
    return {"difference": float((flat(whole) - flat(resumed)).abs().max()), "equal_ranks": ranks_are_equal(resumed)}


def check_slowest_rank(folder: Path) -> dict[str, Any]:
    """Rank 1 sleeps before every step; rank 0 waits for it inside backward."""

    class Slow(ns.Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            if trainer.global_rank == 1:
                time.sleep(0.03)

    profiler = lp.ThroughputProfiler(flops=False, roofline=False)
    fit([Slow(), profiler], folder, max_epochs=4)
    return {"notes": list(profiler.report.notes), "steps": profiler.report.steps}


def check_ranges(folder: Path) -> dict[str, Any]:
    """Ranks see different images, one of them twice as bright: ranges are equal all the same."""

    class Uneven(ns.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            batch[0].mul_(1 + trainer.global_rank)

    callback = lp.QuantizationAwareTraining(freeze_batch_norm=1.0)
    module = fit([Uneven(), callback], folder)
    shared = preparation(module)
    assert shared is not None
    mine = torch.cat([shared.ranges.low, shared.ranges.high])
    gathered = [torch.empty_like(mine) for _ in range(2)]
    dist.all_gather(gathered, mine)
    return {
        "equal_ranges": torch.equal(*gathered),
        "known": all(shared.ranges.known),
        "weights": ranks_are_equal(module),
    }


def main(out: str) -> None:
    torch.set_num_threads(1)
    folder = Path(out).parent
    cases = {row.name: lambda row=row: check(row, folder) for row in ROWS}
    cases["resume"] = lambda: check_resume(folder / "plain")
    cases["resume_averaged"] = lambda: check_resume(
        folder / "averaged", lambda: [lp.OptimizerFactory("adamw", ema=0.9), lp.ExactResume()]
    )
    cases["two_optimizers"] = lambda: {"equal_ranks": ranks_are_equal(fit(lp.lossless(), folder, "two_optimizers"))}
    cases["ranges"] = lambda: check_ranges(folder)
    cases["random_masks"] = lambda: check_random_masks(folder)
    cases["slowest_rank"] = lambda: check_slowest_rank(folder)
    run_cases(cases, Path(out))


if __name__ == "__main__":
    main(sys.argv[1])
