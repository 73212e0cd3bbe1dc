"""The strategies for Trainers of ``pytorch_lightning``; callbacks are the same objects in both namespaces."""

from lightning_perf.strategies.classes import PerfDDPStandalone as PerfDDP

__all__ = ["PerfDDP"]
