"""The report of one profile: the house's report with typed access to what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lightning_perf.profiling.advice import Advice
from lightning_perf.profiling.flop_count import FlopCount, quantity
from lightning_perf.profiling.phases import Span
from lightning_perf.profiling.roofline import Mfu, Roofline
from lightning_perf.profiling.steps import Stall
from lightning_perf.report import Plot, Quantity, Report, Run, Section, Series

VARIANT = "this run"
_MOST_MODULES = 20
_INTENSITIES = tuple(2.0**power for power in range(-4, 13))
QUANTITIES = (
    Quantity("samples_per_second", "speed", "samples/s", better="higher", digits=1),
    Quantity("tokens_per_second", "tokens", "tokens/s", better="higher", digits=0),
    Quantity("batches_per_second", "batches", "batches/s", better="higher", digits=2),
    Quantity("step_p50", "step, median", "ms", better="lower", digits=2, scale=1e3),
    Quantity("step_p90", "step, 90th percentile", "ms", better="lower", digits=2, scale=1e3),
    Quantity("step_p99", "step, 99th percentile", "ms", better="lower", digits=2, scale=1e3),
    Quantity("flops_per_step", "model FLOPs per step", "GFLOP", better=None, digits=2, scale=1e-9),
    Quantity("flops_per_second", "model FLOPs per second", "GFLOP/s", better="higher", digits=1, scale=1e-9),
    Quantity("mfu", "MFU", "%", better="higher", digits=1, scale=1e2),
    Quantity("peak_memory", "peak memory", "MB", better="lower", digits=0, scale=1e-6),
)


@dataclass(frozen=True)
class ProfileReport(Report):
    """A :class:`lightning_perf.Report` of one training; everything that it shows is also a field.

    Attributes:
        phases: seconds of the whole training by phase; they exclude each other and add up.
        steps: training steps that were timed.
        samples_per_second: samples over the time of steps; None where a batch's size is unknown.
        flops_per_step: model FLOPs of one training step, forward and backward; None where not counted.
        mfu: model FLOPs per second over the vendor's dense peak, or over the measured one where no vendor's is known; None
            with the reason in ``why_no_mfu``.
        memory: peak bytes by phase.
        advice: what to switch on, the largest expected gain first.
        device_phases: on a GPU, seconds of the device's own timeline by phase.
        stalls: the longest steps, each with the phase that grew.
        spans: the actions of a few steps, for a timeline.
        flops_by_module: FLOPs by qualified name of the module.
    """

    phases: Mapping[str, float] = field(default_factory=dict)
    steps: int = 0
    samples_per_second: float | None = None
    flops_per_step: float | None = None
    mfu: float | None = None
    why_no_mfu: str | None = None
    memory: Mapping[str, int] = field(default_factory=dict)
    advice: Sequence[Advice] = ()
    device_phases: Mapping[str, float] = field(default_factory=dict)
    stalls: Sequence[Stall] = ()
    spans: Sequence[Span] = ()
    flops_by_module: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, kind in (("advice", Advice), ("stalls", Stall), ("spans", Span)):
            made = tuple(kind(**one) if isinstance(one, dict) else one for one in getattr(self, name))
            object.__setattr__(self, name, made)
        for name in ("phases", "memory", "device_phases", "flops_by_module"):
            object.__setattr__(self, name, dict(getattr(self, name)))
        super().__post_init__()

    def per_step(self) -> dict[str, float]:
        """Seconds per step by phase; validation, checkpoints and worker start-up are spread over all steps."""
        return {name: seconds / self.steps for name, seconds in self.phases.items()} if self.steps else {}

    def share(self, phase: str) -> float:
        """The part of the training that ``phase`` took; 0 for one that did not happen."""
        whole = sum(self.phases.values())
        return self.phases.get(phase, 0.0) / whole if whole > 0 else 0.0


def phase_section(
    phases: Mapping[str, float],
    steps: int,
    device: Mapping[str, float],
    spans: Sequence[Span],
) -> Section:
    """The table of phases, a bar for each, and the timeline of a few steps."""
    whole = sum(phases.values())
    ordered = sorted(phases, key=lambda name: -phases[name])
    on_device = bool(device)
    headers = ("phase", "ms per step", "share", *(("ms on the device",) if on_device else ()))
    rows = []
    for name in ordered:
        row = [
            name,
            f"{1e3 * phases[name] / steps:.3f}",
            f"{phases[name] / whole:.1%}",
        ]
        rows.append((*row, f"{1e3 * device.get(name, 0.0) / steps:.3f}") if on_device else tuple(row))
    bars = [Series(name, [(0.0, 1e3 * phases[name] / steps)], kind="bar") for name in ordered]
    plots = [Plot("Milliseconds per step by phase", bars, x="ms per step")]
    if spans:
        plots.append(_timeline(spans))
    return Section("Where the time goes", headers=headers, rows=rows, plots=plots)


def _timeline(spans: Sequence[Span]) -> Plot:
    series = []
    for name in dict.fromkeys(span.phase for span in spans):
        rows = sorted({span.depth for span in spans if span.phase == name})
        for row in rows:
            points = [(1e3 * span.start, 1e3 * span.stop) for span in spans if span.phase == name and span.depth == row]
            series.append(Series(name if row == rows[0] else "", points, kind="spans", row=row))
    return Plot("Timeline of a few steps: what is nested lies below what holds it", series, x="ms")


def memory_section(memory: Mapping[str, int], what: str) -> Section | None:
    """Peak memory by phase, in one step."""
    if not memory:
        return None
    rows = [(name, f"{peak / 1e6:,.0f}") for name, peak in sorted(memory.items(), key=lambda item: -item[1])]
    return Section("Peak memory by phase", sentences=[what], headers=("phase", "MB"), rows=rows)


def flops_section(count: FlopCount, seconds_per_step: float | None) -> Section:
    """FLOPs of one step by module, the largest first, and what could not be counted."""
    children = [(name, part) for name, part in count.by_module.items() if name and part.model]
    # A module that holds but one other says nothing that the other does not say.
    largest = sorted(children, key=lambda item: -item[1].model)[:_MOST_MODULES]
    rows = [
        (
            name,
            quantity(part.forward),
            quantity(part.backward),
            quantity(part.recompute),
            f"{part.model / count.model:.1%}",
        )
        for name, part in largest
    ]
    sentences = [
        f"Model: {quantity(count.model)} FLOPs per step, forward and backward; executed: {quantity(count.total)}."
    ]
    if count.by_dtype:
        kinds = ", ".join(f"{flops / max(count.model, 1):.0%} in {dtype}" for dtype, flops in count.by_dtype.items())
        sentences.append(f"Products: {kinds}.")
    if count.intensity is not None:
        sentences.append(f"At least {quantity(count.bytes)} bytes moved: {count.intensity:.1f} FLOPs per byte.")
    if seconds_per_step:
        sentences.append(f"{count.ops} operators per step, {1e6 * seconds_per_step / max(count.ops, 1):.1f} us each.")
    if count.uncounted:
        names = ", ".join(f"{name} ({calls}x)" for name, calls in count.uncounted.items())
        sentences.append(f"A lower bound: no formula is known for {names}.")
    headers = ("module", "forward", "backward", "recomputed", "share") if rows else ()
    return Section("FLOPs", sentences=sentences, headers=headers, rows=rows)


@dataclass(frozen=True)
class Utilization:
    """MFU as the report shows it: the figure, why it is missing or what to know of it, and what it is held against."""

    best: float | None
    why: str | None = None
    against: str = ""
    found: Mfu | None = None


def roofline_section(
    roofline: Roofline, count: FlopCount | None, seconds_per_step: float, used: Utilization
) -> Section:
    """What the machine can do, and where the step stands below it."""
    sentences = [roofline.sentence()]
    if used.best is not None:
        sentences.append(f"MFU {used.best:.1%} of {used.against}.")
    if used.found is not None and used.found.vendor is not None and used.found.measured is not None:
        sentences.append(f"Of the peak measured here: {used.found.measured:.1%}.")
    if used.why is not None:
        sentences.append(f"{used.why[0].upper()}{used.why[1:]}.")
    series = [
        Series(dtype, [(x, y) for x in _INTENSITIES if (y := roofline.attainable(x, dtype)) is not None])
        for dtype in roofline.peaks
    ]
    if count is not None and count.intensity and count.model:
        series.append(Series("this step", [(count.intensity, count.model / seconds_per_step)], kind="points"))
    caption = "Roofline: what bandwidth and products allow, and the step below it"
    plot = Plot(caption, series, x="FLOPs per byte moved", y="FLOP/s", logarithmic="xy")
    return Section("Roofline", sentences=sentences, plots=[plot])


def stall_section(stalls: Sequence[Stall]) -> Section | None:
    """The steps that took more than three times as long as those around them."""
    if not stalls:
        return None
    rows = [
        (str(stall.step), f"{1e3 * stall.seconds:.1f}", f"{1e3 * stall.typical:.1f}", stall.phase) for stall in stalls
    ]
    return Section(
        "Stalls: steps of over three times the usual", headers=("step", "ms", "usual ms", "phase"), rows=rows
    )


def advice_section(advice: Sequence[Advice]) -> Section:
    """What the numbers advise, or that they advise nothing."""
    none = "Nothing in these numbers promises more than 3 % from a lever known here."
    return Section("Advice", sentences=[one.sentence() for one in advice] or [none])


def single_run(
    quantities: Mapping[str, float | None],
    missing: Mapping[str, str],
    step_seconds: Sequence[float],
    notes: Sequence[str] = (),
) -> tuple[tuple[Run, ...], tuple[Quantity, ...]]:
    """One run with the quantities that were measured, and those rows only that can ever have a value."""
    run = Run(
        VARIANT, 0, quantities=dict(quantities), samples={"step_seconds": tuple(step_seconds)}, missing=dict(missing)
    )
    shown = tuple(q for q in QUANTITIES if quantities.get(q.key) is not None or q.key in missing)
    return (run,), shown


def comparison_section(by_variant: Mapping[str, Sequence[Mapping[str, float]]]) -> Section | None:
    """Milliseconds per step by phase, variants side by side: medians over their runs.

    Args:
        by_variant: for each variant, one mapping of phase to seconds per step for each of its runs.
    """
    variants = {name: runs for name, runs in by_variant.items() if runs}
    if not variants:
        return None
    phases = dict.fromkeys(phase for runs in variants.values() for run in runs for phase in run)
    middle = {
        name: {phase: statistics.median([run.get(phase, 0.0) for run in runs]) for phase in phases}
        for name, runs in variants.items()
    }
    first = next(iter(middle.values()))
    ordered = sorted(phases, key=lambda phase: -max(times[phase] for times in middle.values()))
    rows = [
        (phase, *(f"{1e3 * times[phase]:.2f}" for times in middle.values()))
        for phase in ordered
        if max(times[phase] for times in middle.values()) >= 0.001 * sum(first.values())
    ]
    headers = ("phase, ms per step", *middle)
    return Section("Where the time goes", headers=headers, rows=rows)
