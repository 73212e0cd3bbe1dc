"""Callbacks and strategies that make an unchanged LightningModule train faster, with a measured report."""

from lightning_perf._version import __version__ as __version__
