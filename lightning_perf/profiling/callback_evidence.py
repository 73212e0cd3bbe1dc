"""What a profile must know of the Trainer before it can advise anything."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from lightning_perf.host.optimizer_door import raw
from lightning_perf.optim.fusable import class_reason
from lightning_perf.profiling.advice import Evidence


def processor_state() -> tuple[float, int] | None:
    """Seconds this process has spent in the kernel, and its minor page faults; ``None`` where the system does not tell."""
    if sys.platform == "win32":
        return None
    import resource

    return os.times().system, resource.getrusage(resource.RUSAGE_SELF).ru_minflt


class ProcessorUse:
    """Seconds in the kernel and minor page faults of the steps that count; those of others are left out."""

    def __init__(self) -> None:
        self._seconds, self._faults = 0.0, 0
        self._since = processor_state()

    def step(self, *, counts: bool = True) -> None:
        """A step has ended, or several of the same kind."""
        now = processor_state()
        if counts and now is not None and self._since is not None:
            self._seconds += now[0] - self._since[0]
            self._faults += now[1] - self._since[1]
        self._since = now

    def per_step(self, steps: int) -> tuple[float, float] | None:
        """Kernel seconds and page faults per step; ``None`` where the system does not tell."""
        return None if self._since is None else (self._seconds / steps, self._faults / steps)


def gather_evidence(
    trainer: Any,
    per_step: Mapping[str, float],
    *,
    threads: int,
    first_start: float,
    processor: tuple[float, float] | None,
    convolution_share: float | None,
    bfloat16_speed: float | None,
    utilization: float | None,
) -> Evidence:
    """The numbers of a profile beside the Trainer's settings.

    Args:
        trainer: the Trainer, at the end of training.
        per_step: seconds per step by phase.
        threads: torch's; time in the kernel is shared among them.
        first_start: seconds per step that the first start of the workers took.
        processor: kernel seconds and page faults per step.
        convolution_share: part of the FLOPs in convolutions whose layout could change.
        bfloat16_speed: how many times as fast bfloat16 products are as float32 ones, where bfloat16 is native.
        utilization: MFU against the measured peak.
    """
    loader = training_loader(trainer)
    seconds, faults = (None, None) if processor is None else (processor[0] / threads, processor[1])
    bar = trainer.progress_bar_callback
    return Evidence(
        per_step=per_step,
        callbacks=frozenset(type(callback).__name__ for callback in trainer.callbacks),
        device=trainer.strategy.root_device.type,
        precision=str(trainer.precision),
        unfused=_unfused(trainer),
        kernel_seconds=seconds,
        page_faults=faults,
        convolution_share=convolution_share,
        bfloat16_speed=bfloat16_speed,
        utilization=utilization,
        workers=getattr(loader, "num_workers", None),
        persistent=bool(getattr(loader, "persistent_workers", False)),
        first_start=first_start,
        pinned=bool(getattr(loader, "pin_memory", False)),
        log_every_n_steps=int(trainer.log_every_n_steps or 1),
        progress_bar=None if bar is None else type(bar).__name__,
    )


def training_loader(trainer: Any) -> Any:
    """The first of the training loaders, or ``None``."""
    combined = trainer.fit_loop._combined_loader
    return next(iter(combined.flattened), None) if combined is not None else None


def _unfused(trainer: Any) -> tuple[str, ...]:
    """Classes of the optimizers that have a fused step and do not use it."""
    found = []
    for optimizer in map(raw, trainer.strategy.optimizers):
        groups = getattr(optimizer, "param_groups", [])
        if class_reason(optimizer) is None and not any(group.get("fused") for group in groups):
            found.append(type(optimizer).__name__)
    return tuple(dict.fromkeys(found))
