"""A rank that is told to end, or dies, in the midst of training; started by ``test_ranks.py``."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as ns
import torch
from lightning.pytorch.callbacks import OnExceptionCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

import lightning_perf as lp
from tests.strategies.modules import make, rows


class Fault(ns.Callback):
    """On rank 1, inside step 5: the signal arrives while the other rank is somewhere in its own step."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        if trainer.global_rank == 1 and trainer.global_step == 5:
            if self.kind == "die":
                os._exit(3)
            os.kill(os.getpid(), signal.SIGTERM)


def main(out: str, kind: str) -> None:
    torch.set_num_threads(1)
    callbacks: list[Any] = [Fault(kind)]
    if kind == "sigterm":
        callbacks.append(OnExceptionCheckpoint(Path(out).parent))
    trainer = ns.Trainer(
        max_epochs=10_000,
        accelerator="cpu",
        devices=2,
        strategy=lp.PerfDDP(),
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=kind == "sigterm",
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=Path(out).parent,
    )
    try:
        trainer.fit(make("Plain", ns), rows())
    except SIGTERMException:
        assert trainer.received_sigterm
        print("ended by SIGTERM after", trainer.global_step, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
