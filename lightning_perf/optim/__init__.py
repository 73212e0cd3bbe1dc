"""Optimizers by name, parameter groups, schedules and the fused step; nothing here but ``callback`` knows Lightning."""

from lightning_perf.optim.fused import Fused as Fused
from lightning_perf.optim.fused import make_fused as make_fused
from lightning_perf.optim.fused import sparse_gradient_parameters as sparse_gradient_parameters
from lightning_perf.optim.fused import why_not_fused as why_not_fused
from lightning_perf.optim.param_groups import describe_groups as describe_groups
from lightning_perf.optim.param_groups import infer_groups as infer_groups
from lightning_perf.optim.registry import OptimizerRow as OptimizerRow
from lightning_perf.optim.registry import build as build
from lightning_perf.optim.registry import get_optimizer as get_optimizer
from lightning_perf.optim.registry import list_optimizers as list_optimizers
from lightning_perf.optim.schedules import ScheduleRow as ScheduleRow
from lightning_perf.optim.schedules import get_schedule as get_schedule
from lightning_perf.optim.schedules import list_schedules as list_schedules
from lightning_perf.optim.schedules import make_factor as make_factor
from lightning_perf.optim.schedules import resolve_warmup as resolve_warmup
