"""What a preset tells torch's DDP, where the user said nothing."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lightning_perf.host import is_a
from lightning_perf.strategies.compression import swaps
from lightning_perf.strategies.link import Link, bucket_mib, exchange_mib, probe_link
from lightning_perf.strategies.presets import Preset


def ddp_arguments(
    preset: Preset,
    given: dict[str, Any],
    trainer: Any,
    device: torch.device,
    say: Callable[[str], None],
    link: Link | None = None,
) -> dict[str, Any]:
    """The arguments of DDP: those ``given``, and those of the preset.

    Collective where the preset needs to know the link and ``link`` was not measured before.
    """
    arguments = dict(given)
    if preset.static_graph and accumulates(trainer):
        say(
            "static_graph stays off: with accumulated gradients torch fails in the first backward (pytorch#187732); the "
            "rest of perf_ddp runs."
        )
    elif preset.static_graph:
        arguments["static_graph"] = True
    if preset.probes_buckets:
        ours = _overlapping(trainer.lightning_module, device, say, link or probe_link(device))
    elif swaps(
        preset.compression,
        trainer.world_size,
        on_cpu=device.type == "cpu",
        skips_unused=bool(arguments.get("skip_all_reduce_unused_params")),
    ):
        ours = {"bucket_cap_mb": exchange_mib(_gradient_bytes(trainer.lightning_module))}
    else:
        return arguments
    # LightningCLI passes every argument of DDP, as None where nobody said anything.
    return {**ours, **{name: value for name, value in arguments.items() if value is not None}}


def _gradient_bytes(module: nn.Module) -> int:
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return sum(parameter.numel() * parameter.element_size() for parameter in trained)


def _overlapping(module: nn.Module, device: torch.device, say: Callable[[str], None], link: Link) -> dict[str, Any]:
    size = _gradient_bytes(module)
    arguments: dict[str, Any] = {"bucket_cap_mb": bucket_mib(link, size), "gradient_as_bucket_view": True}
    if device.type == "cuda" and "batched_grad_copy" in signature(DistributedDataParallel).parameters:
        arguments["batched_grad_copy"] = True
    say(
        f"a round takes {link.latency * 1e3:.2f} ms and a second carries {link.bandwidth / 1e6:.0f} MB: buckets of "
        f"{arguments['bucket_cap_mb']} MiB."
    )
    return arguments


def accumulates(trainer: Any) -> bool:
    """Whether the Trainer, or a schedule among its callbacks, puts several batches into one step."""
    schedules = [callback for callback in trainer.callbacks if is_a(callback, "GradientAccumulationScheduler")]
    factors = [factor for schedule in schedules for factor in schedule.scheduling.values()]
    return max([trainer.accumulate_grad_batches, *factors]) > 1
