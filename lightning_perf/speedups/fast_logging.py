"""Logging without its price."""

from __future__ import annotations

from typing import Any

from lightning_perf.host import PerfCallback
from lightning_perf.host.fast_log import speed_up_log


class FastLogging(PerfCallback):
    """Remove what ``self.log`` costs Lightning on every call; what is logged stays the same, bit for bit.

    Lightning moves the whole state of a logged value to the value's device on each call, looks through signatures, and
    compares metadata; a call that differs from an accepted one only in its value needs none of that. Scalars on the CPU
    are accumulated without a tensor per call. Values with a graph, values that are synchronised between processes and
    whatever the short path has not seen before go to Lightning's own method. Nothing of this outlives the run.

    Source: pytorch-lightning issue #20388. Deviation: with ``logger=True`` and a Trainer without logger, Lightning's
    warning comes from the first call of each kind, not from every one.

    Example::

        >>> import lightning_perf as lp
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[lp.FastLogging()], logger=False, enable_checkpointing=False)
    """

    def __init__(self) -> None:
        super().__init__()

    def engage(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Put the short path in front of the module's ``log``."""
        if stage == "predict" or trainer.barebones:
            return
        if speed_up_log(trainer, pl_module, self.undo(trainer)):
            self.say("self.log takes a short path.")
        else:
            self.say(f"{type(pl_module).__name__} has a log method of its own; only the results it fills are faster.")
