"""A rank that is told to end, dies, is killed or hangs in the midst of training; started by ``test_faults.py``."""

from __future__ import annotations

import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as ns
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

import lightning_perf as lp
from tests.strategies.modules import make, rows

#: Rank 1 meets its fault inside this step, the last but one of the third epoch: half a period of local SGD is under way.
STEP = 16
#: Runs that fault go on until then; the others end after these epochs.
EPOCHS = 4


class Fault(ns.Callback):
    """On rank 1, inside a step: whatever happens arrives while the other rank is somewhere in its own step."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        if trainer.global_rank == 1 and trainer.global_step == STEP:
            if self.kind == "die":
                os._exit(3)
            if self.kind == "hang":
                time.sleep(10_000)
            os.kill(os.getpid(), signal.SIGKILL if self.kind == "kill" else signal.SIGTERM)


def trainer_of(kind: str, preset: str, folder: Path) -> Any:
    callbacks: list[Any] = []
    if kind == "sigterm":
        callbacks = [OnExceptionCheckpoint(folder)]
    if kind in ("kill", "resume", "whole"):
        callbacks = [lp.ExactResume(), ModelCheckpoint(folder / kind, "{epoch}", save_top_k=-1)]
    if kind not in ("resume", "whole"):
        callbacks.append(Fault(kind))
    options: dict[str, Any] = {"average_every": 4, "warmup_steps": 2} if preset == "perf_local_sgd" else {}
    if kind == "hang":
        options["timeout"] = timedelta(seconds=6)
    return ns.Trainer(
        max_epochs=EPOCHS if kind in ("kill", "resume", "whole") else 10_000,
        accelerator="cpu",
        devices=2,
        strategy=lp.PerfDDP(preset=preset, **options),
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=bool(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )


def main(out: str, kind: str, preset: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(11 + int(os.environ["RANK"]))
    folder, module = Path(out).parent, make("Plain", ns)
    trainer = trainer_of(kind, preset, folder)
    path = folder / "kill" / "epoch=1.ckpt"
    try:
        trainer.fit(module, rows(), ckpt_path=str(path) if kind == "resume" else None)
    except SIGTERMException:
        assert trainer.received_sigterm
        print("ended by SIGTERM after", trainer.global_step, flush=True)
    if kind in ("resume", "whole"):
        torch.save(module.state_dict(), folder / f"{kind}{trainer.global_rank}.pt")


if __name__ == "__main__":
    for kind in sys.argv[2].split("+"):
        main(sys.argv[1], kind, sys.argv[3])
