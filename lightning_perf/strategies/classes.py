"""The strategy of each namespace; importing this file registers the names of the presets in both registries."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import lightning.pytorch
import pytorch_lightning

from lightning_perf.strategies.perf_ddp import PerfDDPMixin
from lightning_perf.strategies.presets import PRESETS


def strategy_class(namespace: ModuleType, home: str) -> Any:
    """The strategy for one namespace, importable as ``home.PerfDDP``; its names are registered there.

    Args:
        namespace: ``lightning.pytorch`` or ``pytorch_lightning``.
        home: the module that will hold the class, which pickles look it up in.
    """
    body = {"__module__": home, "__qualname__": "PerfDDP", "__doc__": PerfDDPMixin.__doc__}
    built = type("PerfDDP", (PerfDDPMixin, namespace.strategies.DDPStrategy), body)
    for row in PRESETS.values():
        registry = namespace.strategies.StrategyRegistry
        registry.register(row.name, built, description=row.description, override=True, preset=row.name)
    return built


PerfDDP = strategy_class(lightning.pytorch, "lightning_perf")
PerfDDPStandalone = strategy_class(pytorch_lightning, "lightning_perf.pl")
