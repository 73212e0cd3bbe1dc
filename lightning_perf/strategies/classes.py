"""The strategy of each namespace; importing this file registers the names of the presets in both registries."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import lightning.pytorch
import pytorch_lightning

from lightning_perf.strategies.perf_ddp import PerfDDPMixin
from lightning_perf.strategies.presets import PRESETS

_DOC = """DDP without what it need not pay for; ``Trainer(strategy="perf_ddp")`` and the other names are its presets.

Takes every argument of Lightning's DDPStrategy, ``start_method`` included. Learning rate and batch size stay yours.

Args:
    preset: a name of the table in ``docs/guides/ddp.md``.
    agree_every: micro-batches between two agreements on SIGTERM; ``None`` for about one a second.
    average_every: ``perf_local_sgd`` only: optimizer steps between two averages of the weights.
    warmup_steps: ``perf_local_sgd`` only: optimizer steps at the start that are exchanged as in ddp.

Raises:
    MisconfigurationException: if the preset is unknown, or cannot run with what it is given.

Example::

    >>> import lightning_perf as lp
    >>> lp.PerfDDP(preset="perf_ddp", find_unused_parameters=True).preset.promise
    'exact'
"""


def strategy_class(namespace: ModuleType, home: str) -> Any:
    """The strategy for one namespace, importable as ``home.PerfDDP``; its names are registered there.

    Args:
        namespace: ``lightning.pytorch`` or ``pytorch_lightning``.
        home: the module that will hold the class, which pickles look it up in.
    """
    body = {"__module__": home, "__qualname__": "PerfDDP", "__doc__": _DOC}
    built = type("PerfDDP", (PerfDDPMixin, namespace.strategies.DDPStrategy), body)
    for row in PRESETS.values():
        registry = namespace.strategies.StrategyRegistry
        registry.register(row.name, built, description=row.description, override=True, preset=row.name)
    return built


PerfDDP = strategy_class(lightning.pytorch, "lightning_perf")
PerfDDPStandalone = strategy_class(pytorch_lightning, "lightning_perf.pl")
