"""Callbacks and strategies that make an unchanged LightningModule train faster, with a measured report."""

from lightning_perf import pl as pl
from lightning_perf._version import __version__ as __version__
from lightning_perf.autopilot.compare import compare as compare
from lightning_perf.autopilot.export import export as export
from lightning_perf.autopilot.export_load import load_artifact as load_artifact
from lightning_perf.autopilot.presets import lossless as lossless
from lightning_perf.autopilot.quantize import quantize as quantize
from lightning_perf.autopilot.race import race as race
from lightning_perf.optim.callback import OptimizerFactory as OptimizerFactory
from lightning_perf.optim.registry import list_optimizers as list_optimizers
from lightning_perf.profiling.callback import ThroughputProfiler as ThroughputProfiler
from lightning_perf.profiling.callback_flops import count_macs as count_macs
from lightning_perf.profiling.callback_flops import measure_flops as measure_flops
from lightning_perf.pruning.callback import MagnitudePruning as MagnitudePruning
from lightning_perf.pruning.callback_channels import ChannelPruning as ChannelPruning
from lightning_perf.pruning.load import load_pruned as load_pruned
from lightning_perf.pruning.sparsity import sparsity as sparsity
from lightning_perf.quantization.callback import QuantizationAwareTraining as QuantizationAwareTraining
from lightning_perf.quantization.prepare import unprepare as unprepare
from lightning_perf.report import Report as Report
from lightning_perf.speedups.channels_last import ChannelsLast as ChannelsLast
from lightning_perf.speedups.exact_resume import ExactResume as ExactResume
from lightning_perf.speedups.fast_logging import FastLogging as FastLogging
from lightning_perf.speedups.malloc_tuning import MallocTuning as MallocTuning
from lightning_perf.speedups.mixed_precision import AutoMixedPrecision as AutoMixedPrecision
from lightning_perf.strategies.classes import PerfDDP as PerfDDP
