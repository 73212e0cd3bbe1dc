"""DistributedDataParallel in the middle of a fit."""

from __future__ import annotations

import gc
from typing import Any

from lightning_perf.host.doors import require
from lightning_perf.host.namespaces import is_a


def wrap_again(trainer: Any) -> None:
    """Wrap the module anew once its parameters have other shapes; nothing without DDP.

    To be called on all ranks between two steps. The old wrapper has to be gone first: its buckets, and the nodes of
    autograd that it holds on to, are of the old shapes.

    Raises:
        DoorClosed: this release of Lightning wraps elsewhere.
    """
    strategy = trainer.strategy
    if not is_a(strategy, "DDPStrategy"):
        return
    configure = require(strategy, "configure_ddp", parameters=())
    strategy.model = strategy.lightning_module
    gc.collect()
    configure()
