"""Which strategy of a Trainer a preset can take the place of, and why not of the others."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import lightning.pytorch

from lightning_perf.host import is_a
from lightning_perf.strategies.classes import PerfDDP, PerfDDPStandalone
from lightning_perf.strategies.presets import preset_called


def replacement(namespace: ModuleType, asked: Any, preset: str) -> tuple[Any, str]:
    """The strategy to use where ``asked`` was asked for, and in words what was done.

    Replaced is every name that stands for Lightning's own DDPStrategy, with its settings (``ddp_spawn`` keeps its start
    method). An object that a script built is kept: what it was built with cannot be told.

    Args:
        namespace: of the Trainer.
        asked: a name, or a strategy object.
        preset: a name of :data:`PRESETS`.

    Raises:
        MisconfigurationException: no such preset.

    Example::

        >>> replacement(lightning.pytorch, "ddp", "perf_ddp")[1]
        'strategy ddp replaced by perf_ddp'
        >>> replacement(lightning.pytorch, "fsdp", "perf_ddp")
        ('fsdp', 'strategy fsdp kept: perf_ddp takes the place of ddp only')
    """
    preset_called(preset)
    if not isinstance(asked, str):
        name = type(asked).__name__
        if is_a(asked, "SingleDeviceStrategy"):
            return asked, f"strategy {preset} not used: the Trainer has one device, and nothing to exchange"
        return asked, f"strategy kept: the script built its {name} itself; write strategy={preset!r} there"
    registry = namespace.strategies.StrategyRegistry
    if asked not in registry or registry[asked]["strategy"] is not namespace.strategies.DDPStrategy:
        return asked, f"strategy {asked} kept: {preset} takes the place of ddp only"
    ours = PerfDDP if namespace is lightning.pytorch else PerfDDPStandalone
    return ours(preset=preset, **registry[asked]["init_params"]), f"strategy {asked} replaced by {preset}"
