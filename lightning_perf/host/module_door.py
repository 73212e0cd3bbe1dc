"""The module door: change the user's module after every ``setup`` and ``configure_model``, before weights are restored.

Lightning has no hook there (Lightning-AI/pytorch-lightning#14447), so the checkpoint connector's ``restore_model`` is
wrapped on the instance. It runs once for fit, validate, test and predict, with or without a checkpoint, before DDP wraps
the module and before optimizers exist.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Any, TypeAlias

from lightning_perf.host.doors import require, stand_at
from lightning_perf.host.namespaces import DoorClosed


class Stage(IntEnum):
    """The order in which transforms of the module happen, whatever the order of the callbacks."""

    STRUCTURE = 0
    MASKS = 1
    FAKE_QUANTIZATION = 2
    MEMORY_FORMAT = 3
    COMPILE = 4


Transform: TypeAlias = Callable[[Any, Mapping[str, Any]], None]


class _Once:
    """A transform that runs at most once: the learning-rate finder restores a second time within one run."""

    def __init__(self, transform: Transform) -> None:
        self.transform = transform
        self.done = False


def _around(trainer: Any, guests: list[_Once], original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    checkpoint = trainer._checkpoint_connector._loaded_checkpoint
    for guest in guests:
        if not guest.done:
            guest.done = True
            guest.transform(trainer.lightning_module, checkpoint)
    return original(*args, **kwargs)


def at_module_door(trainer: Any, stage: Stage, transform: Transform) -> Callable[[], None]:
    """Have ``transform(module, checkpoint)`` called at the door; returns the function that takes it back.

    ``checkpoint`` is the loaded checkpoint, or empty; its callback state is readable, the weights are not loaded yet.
    The transform must keep every Parameter's identity and may add neither parameters nor buffers.

    Raises:
        DoorClosed: under strategies that restore weights only after sharding (FSDP, ModelParallel, DeepSpeed).
    """
    if trainer.strategy.restore_checkpoint_after_setup:
        raise DoorClosed(
            f"{type(trainer.strategy).__name__} shards the module before its weights are restored, so the module cannot be "
            "changed in between; use a single device or DDP, or leave this callback out."
        )
    connector = require(trainer, "_checkpoint_connector")
    require(connector, "_loaded_checkpoint")

    def around(guests: list[Any], original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        return _around(trainer, guests, original, args, kwargs)

    return stand_at(connector, "restore_model", _Once(transform), around, order=int(stage), parameters=())
