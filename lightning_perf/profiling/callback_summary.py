"""From what a profiled fit has seen to its report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lightning_perf import hardware
from lightning_perf.profiling import phases
from lightning_perf.profiling.advice import advise
from lightning_perf.profiling.callback_evidence import gather_evidence
from lightning_perf.profiling.callback_observe import Observations
from lightning_perf.profiling.flop_count import FlopCount
from lightning_perf.profiling.profile_report import (
    VARIANT,
    ProfileReport,
    Utilization,
    advice_section,
    flops_section,
    memory_section,
    phase_section,
    roofline_section,
    single_run,
    stall_section,
)
from lightning_perf.profiling.roofline import Roofline, measure_roofline, mfu
from lightning_perf.profiling.steps import slowest_rank


def build_report(trainer: Any, observed: Observations, *, roofline: bool, gather: bool) -> ProfileReport:
    """The report of a fit that has ended.

    Args:
        trainer: the Trainer.
        observed: what was seen.
        roofline: whether to measure what the machine can do, which takes about two seconds.
        gather: whether all ranks are here, so that they can be compared.
    """
    steps = observed.steps
    seconds = observed.seconds
    per_step = {name: value / steps.count for name, value in seconds.items()}
    notes = [observed.contention, *_notes(trainer, seconds)]
    if gather:
        notes += _ranks(trainer, per_step)
    probes = measure_roofline(observed.device, _dtypes(observed)) if roofline and trainer.is_global_zero else None
    used = _mfu(observed, probes)
    quantities, missing = _quantities(observed, used)
    evidence = gather_evidence(
        trainer,
        per_step,
        threads=torch.get_num_threads(),
        first_start=observed.first_start / steps.count,
        processor=observed.processor.per_step(steps.count),
        convolution_share=_convolution_share(observed.flops, trainer.lightning_module),
        bfloat16_speed=_bfloat16_speed(observed, probes),
        utilization=None if used.found is None else used.found.measured,
    )
    advice = advise(evidence)
    runs, shown = single_run(quantities, missing, steps.times())
    device = observed.device_seconds()
    what = (
        "Of the CUDA allocator." if observed.device.type == "cuda" else "Resident memory of the process, in one step."
    )
    sections = [
        advice_section(advice),
        phase_section(seconds, steps.count, device, observed.spans),
        None if observed.flops is None else flops_section(observed.flops, steps.percentile(0.5)),
        None if probes is None else roofline_section(probes, observed.flops, steps.seconds / steps.count, used),
        memory_section(observed.memory, what),
        stall_section(steps.stalls),
    ]
    return ProfileReport(
        title=f"profile of {type(trainer.lightning_module).__name__}",
        baseline=VARIANT,
        runs=runs,
        quantities=shown,
        notes=notes,
        sections=[section for section in sections if section is not None],
        phases=seconds,
        steps=steps.count,
        samples_per_second=steps.samples_per_second(),
        flops_per_step=None if observed.flops is None else float(observed.flops.model),
        flops_by_module={} if observed.flops is None else {k: v.model for k, v in observed.flops.by_module.items()},
        mfu=used.best,
        why_no_mfu=used.why,
        memory=observed.memory,
        advice=advice,
        device_phases=device,
        stalls=steps.stalls,
        spans=observed.spans,
    )


def _quantities(observed: Observations, used: Utilization) -> tuple[dict[str, float | None], dict[str, str]]:
    steps = observed.steps
    quantities: dict[str, float | None] = {
        "samples_per_second": steps.samples_per_second(),
        "tokens_per_second": steps.tokens_per_second(),
        "batches_per_second": steps.count / steps.seconds if steps.seconds else None,
        "peak_memory": observed.peak_memory,
        **{f"step_p{share:.0f}": steps.percentile(share / 100) for share in (50, 90, 99)},
    }
    missing = {}
    if observed.flops is not None:
        quantities["flops_per_step"] = float(observed.flops.model)
        quantities["flops_per_second"] = observed.flops.model * steps.count / steps.seconds if steps.seconds else None
    quantities["mfu"] = used.best
    if used.best is None and used.why is not None:
        missing["mfu"] = used.why
    if quantities["samples_per_second"] is None:
        missing["samples_per_second"] = "the size of a batch could not be told"
    if quantities["peak_memory"] is None:
        missing["peak_memory"] = "this system does not tell the peak of resident memory"
    return quantities, missing


def _dtypes(observed: Observations) -> tuple[torch.dtype, ...]:
    """What is worth probing: the types of the step's products, float32, and bfloat16 for the advice about it."""
    found = [] if observed.flops is None else [getattr(torch, name, None) for name in observed.flops.by_dtype]
    known = [dtype for dtype in found if isinstance(dtype, torch.dtype) and dtype.is_floating_point]
    return tuple(dict.fromkeys([torch.float32, torch.bfloat16, *known]))


def _mfu(observed: Observations, probes: Roofline | None) -> Utilization:
    if observed.flops is None:
        return Utilization(None, "FLOPs were not counted")
    found = mfu(observed.flops, observed.steps.seconds / observed.steps.count, observed.device, roofline=probes)
    best = found.vendor if found.vendor is not None else found.measured
    against = "the vendor's dense peak" if found.vendor is not None else "the peak measured here"
    return Utilization(best, "; ".join(found.reasons) or None, against, found)


def _bfloat16_speed(observed: Observations, probes: Roofline | None) -> float | None:
    if probes is None or not hardware.bfloat16_is_native(observed.device.type):
        return None
    fast, slow = probes.peaks.get("bfloat16"), probes.peaks.get("float32")
    if fast is None or slow is None or fast.is_busy or slow.is_busy:
        return None
    return fast.best / slow.best


def _convolution_share(flops: FlopCount | None, module: nn.Module) -> float | None:
    """The part of the FLOPs in layers that channels-last would change; ``None`` if they were not counted."""
    if flops is None or not flops.model:
        return None
    layers = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    named = {name: part for name, part in module.named_modules() if isinstance(part, layers)}
    contiguous = (name for name, part in named.items() if name in flops.by_module and part.weight.is_contiguous())
    return sum(flops.by_module[name].model for name in contiguous) / flops.model


def _notes(trainer: Any, seconds: Mapping[str, float]) -> list[str]:
    rest = seconds.get(phases.REST, 0.0) / max(sum(seconds.values()), 1e-12)
    notes = [
        "Phases exclude each other; validation, checkpoints and worker start-up are spread over all steps. "
        f"{rest:.1%} of the time has no name."
    ]
    if not trainer.lightning_module.automatic_optimization and phases.BACKWARD not in seconds:
        notes.append("The module calls loss.backward() itself, which no one can see: backward is part of forward here.")
    if trainer.strategy.root_device.type == "cuda":
        notes.append("Phases are the host's; the device's own are beside them, from events, without a synchronisation.")
    return notes


def _ranks(trainer: Any, per_step: Mapping[str, float]) -> list[str]:
    """Who the others wait for; the wait itself is inside backward and exchange, so these are left out."""
    if trainer.world_size < 2:
        return []
    own = sum(seconds for name, seconds in per_step.items() if name not in (phases.BACKWARD, phases.EXCHANGE))
    mine = torch.tensor([own], device=trainer.strategy.root_device)
    every = [float(value) for value in trainer.strategy.all_gather(mine).flatten()]
    slowest = slowest_rank(every)
    shown = ", ".join(f"rank {rank} {1e3 * seconds:.2f}" for rank, seconds in enumerate(every))
    if slowest is None:
        return [f"Milliseconds per step outside backward: {shown}; no rank keeps the others waiting."]
    return [
        f"Rank {slowest} is the slowest, the others wait for it: milliseconds per step outside backward are {shown}."
    ]
