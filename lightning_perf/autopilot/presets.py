"""Everything that changes no result, in one line."""

from __future__ import annotations

from typing import Any

from lightning_perf.host import PerfCallback
from lightning_perf.optim.callback import OptimizerFactory
from lightning_perf.speedups.channels_last import ChannelsLast
from lightning_perf.speedups.exact_resume import ExactResume
from lightning_perf.speedups.fast_logging import FastLogging
from lightning_perf.speedups.malloc_tuning import MallocTuning


def lossless() -> list[Any]:
    """The callbacks that change no result: for every user, on every module.

    Losses, metrics and weights stay the same bit for bit (:class:`FastLogging`, :class:`MallocTuning`,
    :class:`ExactResume`), or up to the rounding of a fused kernel (:class:`OptimizerFactory`) or another memory format
    (:class:`ChannelsLast`). Each prints one line about what it changed in this run, or why it changed nothing.

    Example::

        >>> import lightning_perf as lp
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=lp.lossless(), logger=False, enable_checkpointing=False)
    """
    callbacks: list[PerfCallback] = [OptimizerFactory(), FastLogging(), ChannelsLast(), MallocTuning(), ExactResume()]
    return callbacks
