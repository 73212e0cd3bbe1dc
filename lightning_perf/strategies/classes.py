"""The strategy of each namespace; importing this file registers the names of the presets in both registries."""

import lightning.pytorch
import pytorch_lightning

from lightning_perf.strategies.perf_ddp import strategy_class

PerfDDP = strategy_class(lightning.pytorch, "lightning_perf")
PerfDDPStandalone = strategy_class(pytorch_lightning, "lightning_perf.pl")
