"""What a preset cannot run with; said before the first step, with what to use instead."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import LBFGS

from lightning_perf.host import MisconfigurationException, is_a
from lightning_perf.strategies.presets import Preset

#: What breaks in DDP, by a word of its message, and what to do about it.
_ADVICE = {
    "Your training graph has changed": "perf_ddp_static needs a graph that never changes; use strategy='perf_ddp'.",
    "Connection closed by peer": "another process of this job has ended; the error that explains it is in its output.",
    "Connection reset by peer": "another process of this job has ended; the error that explains it is in its output.",
    "Timed out waiting": "another process of this job hangs or is much slower; PerfDDP(timeout=...) sets how long to wait.",
}


def check_arguments(preset: Preset, hook: Any, averaging_period: int | None, allow: str, **numbers: int | None) -> None:
    """Refuse arguments of the strategy that contradict its preset.

    Raises:
        MisconfigurationException: for a communication hook or an averaging period beside a preset that has its own, for
            ``allow`` beside one that does not try others, and for a count below its least value.
    """
    if hook is not None and (preset.compression or preset.local):
        raise MisconfigurationException(
            f"ddp_comm_hook={hook!r} was given beside preset={preset.name!r}, which sets how gradients travel itself; "
            "leave the hook out, or use preset='perf_ddp' with it."
        )
    if averaging_period is not None and (preset.compression or preset.local):
        raise MisconfigurationException(
            f"model_averaging_period={averaging_period} belongs to torch's post-local SGD; with preset={preset.name!r} "
            "leave it out (perf_local_sgd takes average_every)."
        )
    if allow != "exact" and not preset.tries:
        raise MisconfigurationException(
            f"allow={allow!r} widens what preset='perf_ddp_auto' tries, and preset={preset.name!r} tries none; leave it out."
        )
    for name, value in numbers.items():
        least = 0 if name == "warmup_steps" else 1
        if value is not None and value < least:
            raise MisconfigurationException(f"{name}={value} must be at least {least}.")


def check_local(preset: Preset, rate: float, momentum: bool) -> None:
    """Refuse a factor that stops or turns local steps, and what is for local steps where no step is local.

    Raises:
        MisconfigurationException: with the rule.
    """
    if not (0 < rate < math.inf):
        raise MisconfigurationException(
            f"local_rate={rate} must be positive and finite; 1 leaves learning rates alone."
        )
    if rate != 1 and not preset.local:
        raise MisconfigurationException(
            f"local_rate={rate} is for local steps, and preset={preset.name!r} takes none; leave it out, or use "
            "preset='perf_local_sgd'."
        )
    if not momentum and not preset.local:
        raise MisconfigurationException(
            f"average_momentum={momentum} is for averages of weights, and preset={preset.name!r} takes none; leave it out, "
            "or use preset='perf_local_sgd'."
        )


def check_backend(backend: str, device: torch.device, expected_size: int) -> None:
    """Refuse a backend that is not there or cannot reach the device, and a process group of another run.

    Raises:
        MisconfigurationException: with the backend to ask for.
    """
    if not dist.is_available():
        raise MisconfigurationException("this build of torch has no torch.distributed; use strategy='auto', devices=1.")
    if backend == "nccl" and device.type == "cpu":
        raise MisconfigurationException(
            "process_group_backend='nccl' cannot reduce tensors on the CPU; use process_group_backend='gloo'."
        )
    if backend == "nccl" and not dist.is_nccl_available():
        raise MisconfigurationException(
            "this build of torch has no NCCL; use process_group_backend='gloo', which is slower but runs everywhere."
        )
    if not dist.is_initialized():
        return
    if dist.get_world_size() != expected_size:
        raise MisconfigurationException(
            f"a process group of {dist.get_world_size()} processes is initialised already, and the Trainer expects "
            f"{expected_size}; set devices and num_nodes to match it, or call torch.distributed.destroy_process_group()."
        )
    if dist.get_backend() == "nccl" and device.type == "cpu":
        raise MisconfigurationException(
            "the process group that is initialised already uses nccl, which cannot reduce tensors on the CPU; initialise "
            "it with 'gloo', or leave that to the Trainer."
        )


def check_module(preset: Preset, module: nn.Module, precision: Any) -> None:
    """Refuse a module or a precision that the preset cannot serve.

    Raises:
        MisconfigurationException: with the preset to use.
    """
    name = type(module).__name__
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise MisconfigurationException(
            f"{name} has no parameter that requires a gradient, so there is nothing to keep equal between processes; "
            "unfreeze some, or train it with strategy='auto' and devices=1."
        )
    if preset.promise == "exact":
        return
    scaled = is_a(precision, "MixedPrecision") and getattr(precision, "scaler", None) is not None
    if scaled and preset.compression != "bf16":
        raise MisconfigurationException(
            f"precision='16-mixed' scales the loss, and {preset.name} keeps something from step to step that a change of "
            "scale falsifies; use precision='bf16-mixed', or strategy='perf_ddp'."
        )
    sparse = [key for key, child in module.named_modules() if getattr(child, "sparse", False) is True]
    if sparse and preset.compression:
        raise MisconfigurationException(
            f"{name}.{sparse[0]} has sparse gradients, which {preset.name} cannot compress; use strategy='perf_ddp', or "
            "sparse=False."
        )


def check_optimizers(preset: Preset, optimizers: Iterable[Any]) -> None:
    """Refuse an optimizer that cannot work with what the preset does to gradients or weights.

    Raises:
        MisconfigurationException: with the preset to use.
    """
    if preset.promise == "exact":
        return
    for optimizer in optimizers:
        raw = optimizer._optimizer if is_a(optimizer, "LightningOptimizer") else optimizer
        name = type(raw).__name__
        if isinstance(raw, LBFGS):
            reason = "compares losses along a line, which rounded or local gradients mislead"
        elif preset.local and name == "ZeroRedundancyOptimizer":
            reason = "steps each parameter on one process only, and here every process steps its own"
        elif preset.local and any(callable(getattr(raw, door, None)) for door in ("eval", "evaluation_weights")):
            reason = "keeps a second copy of the weights, which an average of the first does not reach"
        else:
            continue
        raise MisconfigurationException(f"{name} {reason}: {preset.name} cannot run it; use strategy='perf_ddp'.")


def advise(exception: BaseException, preset: Preset) -> None:
    """Say behind a message of torch what it means here."""
    for words, advice in _ADVICE.items():
        if words in str(exception):
            exception.args = (f"{exception}\n{preset.name}: {advice}", *exception.args[1:])
