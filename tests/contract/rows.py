"""The registry of the contract suite: a new callback joins by one row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning_perf as lp


@dataclass(frozen=True)
class Row:
    """One callback under contract.

    ``lossless``: ``"bitwise"``, ``"rounding"`` or ``None`` (it changes training on purpose). ``refuses``: kinds of
    modules or Trainer settings that it refuses with a MisconfigurationException. ``yaml``: what LightningCLI is given.
    ``reshapes``: weights have other shapes afterwards, which a plain module does not load.
    """

    name: str
    make: Callable[[], Any]
    lossless: str | None
    yaml: dict[str, Any]
    refuses: tuple[str, ...] = ()
    reshapes: bool = False


ROWS = (
    Row("OptimizerFactory", lp.OptimizerFactory, "rounding", {"class_path": "lightning_perf.OptimizerFactory"}),
    Row(
        "OptimizerFactory-adamw",
        lambda: lp.OptimizerFactory("adamw", lr=3e-3, schedule="warmup_cosine", warmup=2),
        None,
        {
            "class_path": "lightning_perf.OptimizerFactory",
            "init_args": {"optimizer": "adamw", "lr": 3e-3, "schedule": "warmup_cosine", "warmup": 2},
        },
        refuses=("manual", "two_optimizers", "raw_step"),
    ),
    Row(
        "OptimizerFactory-nadam-keep",
        lambda: lp.OptimizerFactory("nadam", weight_decay=0.1),
        None,
        {"class_path": "lightning_perf.OptimizerFactory", "init_args": {"optimizer": "nadam", "weight_decay": 0.1}},
        refuses=("manual", "two_optimizers", "raw_step"),
    ),
    Row(
        "OptimizerFactory-ema",
        lambda: lp.OptimizerFactory(ema=0.9),
        None,
        {"class_path": "lightning_perf.OptimizerFactory", "init_args": {"ema": 0.9}},
    ),
    Row(
        "OptimizerFactory-auto",
        lambda: lp.OptimizerFactory("auto"),
        None,
        {"class_path": "lightning_perf.OptimizerFactory", "init_args": {"optimizer": "auto"}},
        refuses=("manual", "two_optimizers", "raw_step"),
    ),
    Row(
        "OptimizerFactory-lr-auto",
        lambda: lp.OptimizerFactory("adamw", lr="auto"),
        None,
        {"class_path": "lightning_perf.OptimizerFactory", "init_args": {"optimizer": "adamw", "lr": "auto"}},
        refuses=("manual", "two_optimizers", "raw_step"),
    ),
    Row(
        "OptimizerFactory-muon",
        lambda: lp.OptimizerFactory("muon", schedule="warmup_linear"),
        None,
        {
            "class_path": "lightning_perf.OptimizerFactory",
            "init_args": {"optimizer": "muon", "schedule": "warmup_linear"},
        },
        refuses=("manual", "two_optimizers", "raw_step"),
    ),
    Row("FastLogging", lp.FastLogging, "bitwise", {"class_path": "lightning_perf.FastLogging"}),
    Row("ChannelsLast", lp.ChannelsLast, "rounding", {"class_path": "lightning_perf.ChannelsLast"}),
    Row("MallocTuning", lp.MallocTuning, "bitwise", {"class_path": "lightning_perf.MallocTuning"}),
    Row("ExactResume", lp.ExactResume, "bitwise", {"class_path": "lightning_perf.ExactResume"}),
    Row(
        "ThroughputProfiler",
        lambda: lp.ThroughputProfiler(roofline=False),
        "bitwise",
        {"class_path": "lightning_perf.ThroughputProfiler", "init_args": {"roofline": False}},
    ),
    Row(
        "MagnitudePruning",
        lambda: lp.MagnitudePruning(0.5, start=0.0),
        None,
        {"class_path": "lightning_perf.MagnitudePruning", "init_args": {"sparsity": 0.5, "start": 0.0}},
    ),
    Row(
        "ChannelPruning",
        lambda: lp.ChannelPruning(0.8, at=0.0, round_to=2),
        None,
        {"class_path": "lightning_perf.ChannelPruning", "init_args": {"target": 0.8, "at": 0.0, "round_to": 2}},
        refuses=("raw_step", "no channels to spare"),
        reshapes=True,
    ),
    Row("AutoMixedPrecision", lp.AutoMixedPrecision, None, {"class_path": "lightning_perf.AutoMixedPrecision"}),
    Row(
        "QuantizationAwareTraining",
        lambda: lp.QuantizationAwareTraining(freeze_batch_norm=0.4),
        None,
        {"class_path": "lightning_perf.QuantizationAwareTraining", "init_args": {"freeze_batch_norm": 0.4}},
    ),
)
