"""Every private name of Lightning that the house stands on, in one table.

Each name is probed again where it is used; this table serves the test that runs on every supported release, and tells a
reader what a new release of Lightning could break.
"""

from __future__ import annotations

import importlib
import inspect
from types import ModuleType
from typing import NamedTuple


class PrivateName(NamedTuple):
    """One attribute of one class of Lightning: where it is, what it takes, who needs it."""

    owner: str
    attribute: str
    parameters: tuple[str, ...] | None
    needed_by: str


_CHECKPOINTS = "trainer.connectors.checkpoint_connector._CheckpointConnector"
_RESULTS = "trainer.connectors.logger_connector.result._ResultCollection"
_CONNECTOR = "trainer.connectors.logger_connector.logger_connector._LoggerConnector"
_RESULT = "trainer.connectors.logger_connector.result._ResultMetric"

PRIVATE_NAMES = (
    PrivateName(_CHECKPOINTS, "restore_model", ("self",), "module door"),
    PrivateName("strategies.Strategy", "restore_checkpoint_after_setup", None, "module door"),
    PrivateName("strategies.Strategy", "setup_optimizers", ("self", "trainer"), "optimizer door"),
    PrivateName("strategies.Strategy", "lightning_module_state_dict", ("self",), "weights door"),
    PrivateName("strategies.Strategy", "training_step", None, "step door"),
    PrivateName("strategies.Strategy", "validation_step", None, "step door"),
    PrivateName("strategies.Strategy", "backward", None, "step door"),
    PrivateName("strategies.Strategy", "on_train_start", ("self",), "loader door"),
    PrivateName("loops.fit_loop._FitLoop", "setup_data", ("self",), "loader door"),
    PrivateName("loops.fit_loop._FitLoop", "_load_combined_loader_states", ("self",), "loader door"),
    PrivateName("loops.fit_loop._FitLoop", "on_run_end", ("self",), "evaluation door"),
    PrivateName("loops.evaluation_loop._EvaluationLoop", "run", None, "evaluation door"),
    PrivateName("utilities.combined_loader.CombinedLoader", "flattened", None, "dry training"),
    PrivateName("loggers.logger.DummyLogger", "log_metrics", None, "dry training"),
    PrivateName("core.optimizer.LightningOptimizer", "_to_lightning_optimizer", None, "optimizer door"),
    PrivateName("core.module.LightningModule", "_apply_batch_transfer_handler", None, "dry run"),
    PrivateName(_RESULTS, "log", ("self", "fx", "name", "value"), "FastLogging"),
    PrivateName(_RESULTS, "metrics", ("self", "on_step"), "FastLogging"),
    PrivateName(_RESULT, "update", None, "FastLogging"),
    PrivateName(_CONNECTOR, "on_batch_end", ("self",), "ThroughputProfiler"),
    PrivateName(_CONNECTOR, "update_train_step_metrics", ("self",), "ThroughputProfiler"),
    PrivateName(_CONNECTOR, "update_train_epoch_metrics", ("self",), "ThroughputProfiler"),
    PrivateName(_CONNECTOR, "on_epoch_end", ("self",), "ThroughputProfiler"),
    PrivateName(_CONNECTOR, "log_metrics", ("self", "metrics", "step"), "ThroughputProfiler"),
    PrivateName("loops.training_epoch_loop._TrainingEpochLoop", "on_run_start", ("self",), "ThroughputProfiler"),
    PrivateName("loops.training_epoch_loop._TrainingEpochLoop", "_on_before_fetch", ("self",), "ThroughputProfiler"),
    PrivateName("loops.evaluation_loop._EvaluationLoop", "run", ("self",), "ThroughputProfiler"),
    PrivateName("strategies.DDPStrategy", "configure_ddp", ("self",), "ChannelPruning"),
    PrivateName("loops.fit_loop._FitLoop", "_should_accumulate", ("self",), "MagnitudePruning"),
    PrivateName("loops.fit_loop._FitLoop", "total_batch_idx", None, "MagnitudePruning"),
    PrivateName("loops.fit_loop._FitLoop", "max_steps", None, "race"),
    PrivateName("loops.fit_loop._FitLoop", "_can_stop_early", None, "race"),
    PrivateName(
        "loops.training_epoch_loop._TrainingEpochLoop", "_should_check_val_fx", ("self", "data_fetcher"), "race"
    ),
    PrivateName(_CONNECTOR, "metrics", None, "PerfDDP"),
    PrivateName(_RESULTS, "valid_items", ("self",), "PerfDDP"),
    PrivateName(_RESULT, "compute", ("self",), "PerfDDP"),
    PrivateName("trainer.connectors.signal_connector._SignalConnector", "_sigterm_notifier_fn", None, "PerfDDP"),
    PrivateName("loops.fit_loop._FitLoop", "on_advance_end", ("self",), "PerfDDP"),
    PrivateName("strategies.DDPStrategy", "_register_ddp_hooks", ("self",), "PerfDDP"),
    PrivateName("strategies.DDPStrategy", "_setup_model", ("self", "model"), "PerfDDP"),
    PrivateName("trainer.connectors.accelerator_connector._AcceleratorConnector", "_init_strategy", ("self",), "run"),
    PrivateName("strategies.launchers.subprocess_script", "_basic_subprocess_cmd", (), "run"),
    PrivateName("strategies.launchers.subprocess_script", "_hydra_subprocess_cmd", None, "run"),
    PrivateName(
        "loops.training_epoch_loop._TrainingEpochLoop", "_build_kwargs", ("self", "kwargs", "batch"), "perf_ddp_auto"
    ),
    PrivateName("loops.optimization.automatic._AutomaticOptimization", "run", ("self", "optimizer"), "perf_ddp_auto"),
    PrivateName("loops.optimization.manual._ManualOptimization", "run", ("self", "kwargs"), "perf_ddp_auto"),
    PrivateName(_CONNECTOR, "on_batch_start", ("self", "batch"), "perf_ddp_auto"),
    PrivateName(_RESULTS, "__init__", ("self", "training"), "perf_ddp_auto"),
    PrivateName("utilities.types.LRSchedulerConfig", "__init__", None, "schedules"),
)


def missing_names(namespace: ModuleType) -> list[str]:
    """What this release of Lightning lacks of :data:`PRIVATE_NAMES`, in words; empty on a supported release."""
    problems = []
    for row in PRIVATE_NAMES:
        module_path, _, class_name = row.owner.rpartition(".")
        owner = getattr(importlib.import_module(f"{namespace.__name__}.{module_path}"), class_name, None)
        member = inspect.getattr_static(owner, row.attribute, None) if owner is not None else None
        if member is None:
            problems.append(f"{row.owner}.{row.attribute} is missing ({row.needed_by})")
        elif row.parameters is not None:
            found = tuple(inspect.signature(getattr(owner, row.attribute)).parameters)
            if found[: len(row.parameters)] != row.parameters:
                problems.append(f"{row.owner}.{row.attribute} takes {found}, not {row.parameters} ({row.needed_by})")
    return problems
