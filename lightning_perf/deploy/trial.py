"""All variants of one export side by side: gated, timed, ranked, reported."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from statistics import median

import torch

from lightning_perf import hardware
from lightning_perf.deploy.call import FlatModule, copies
from lightning_perf.deploy.gate import TOLERANCE, Verdict, check, state_of
from lightning_perf.deploy.latency import Target, measure
from lightning_perf.deploy.serve import rebuild
from lightning_perf.deploy.source import FP32, Source
from lightning_perf.deploy.structures import in_form_of
from lightning_perf.deploy.variant import Run, Variant
from lightning_perf.report import Quantity, Report, Section
from lightning_perf.report import Run as Sample

EAGER = "eager fp32"
FILE_SIZE = Quantity("file_bytes", "file size", "MB", better="lower", digits=2, scale=1e-6, kind="memory")
ERROR = Quantity("error", "largest error of an output", "", digits=5, compare="difference", kind="other")
METRIC = Quantity("metric", "metric", "", better="higher", digits=4, compare="difference", kind="quality")

Metric = Callable[[Callable[..., object]], float]


@dataclass
class Trial:
    """What is known of one variant so far."""

    variant: Variant
    verdict: Verdict
    bytes: int
    metric: float | None = None
    seconds: dict[str, list[float]] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether it may be used."""
        return self.verdict.passed


def gate(source: Source, variant: Variant, folder: Path, tolerance: Mapping[str, float] | None = None) -> Trial:
    """Check one variant on one thread; an artefact that cannot even run fails with what it raised."""
    limits = TOLERANCE | dict(tolerance or {})
    reference = source.reference(variant.precision)
    watched = {
        f"{label}.{name}": tensor for label, module in _forms(source) for name, tensor in state_of(module).items()
    }
    try:
        verdict = check(
            variant.open(1),
            reference,
            source.call,
            tolerance=limits[variant.precision],
            watched=watched,
            inputs=list(source.calibration)[:2],
        )
    except Exception as error:  # whatever a runtime raises is the verdict on its variant, and is reported
        verdict = Verdict(float("inf"), (), f"it raises {type(error).__name__}: {str(error).strip()[:200]}")
    return Trial(variant, verdict, variant.size(folder))


def _forms(source: Source) -> list[tuple[str, torch.nn.Module]]:
    forms = {"module": source.plain, "prepared": source.prepared, "on_grid": source.on_grid, "integer": source.integer}
    return [(label, form) for label, form in forms.items() if form is not None]


def judge(source: Source, trials: Sequence[Trial], metric: Metric, row: Quantity, max_drop: float | None) -> float:
    """Measure the metric of the module and through every variant that passed so far; returns the module's.

    A variant that cannot be measured, or whose metric is worse by more than ``max_drop``, passes no longer.
    """
    own = metric(under_signature(eager(source), source))
    for trial in trials:
        if not trial.passed:
            continue
        try:
            trial.metric = metric(under_signature(trial.variant.open(None), source))
        except Exception as error:  # as for the gate: what it raises is the verdict on the variant
            reason = f"its metric could not be measured ({type(error).__name__}: {str(error).strip()[:200]})"
            trial.verdict = replace(trial.verdict, reason=reason)
            continue
        drop = own - trial.metric if row.better != "lower" else trial.metric - own
        if max_drop is not None and not drop <= max_drop:
            reason = f"its {row.label} is {trial.metric:.4g} against {own:.4g}, worse by more than {max_drop:g}"
            trial.verdict = replace(trial.verdict, reason=reason)
    return own


def eager(source: Source) -> Run:
    """The module as it is, on flat tensors."""
    flat = FlatModule(source.plain, source.call)
    return lambda tensors: list(flat(*tensors))


def race(source: Source, trials: Sequence[Trial], wanted: Sequence[Target], rounds: int) -> dict[str, list[float]]:
    """Time every variant that passed, and the eager module, at each target; returns the eager module's seconds."""
    baseline: dict[str, list[float]] = {}
    plain = eager(source)
    for target in wanted:
        tensors = source.call.at(target.batch)
        with hardware.torch_threads(target.threads):
            runs = {trial.variant.name: trial.variant.open(target.threads) for trial in trials if trial.passed}
            found = measure({EAGER: plain, **runs}, tensors, rounds=rounds)
        baseline[target.key] = found.pop(EAGER)
        for trial in trials:
            if trial.variant.name in found:
                trial.seconds[target.key] = found[trial.variant.name]
    return baseline


def best(trials: Sequence[Trial], wanted: Sequence[Target]) -> dict[str, str]:
    """The fastest variant that passed, per target."""
    chosen = {}
    for target in wanted:
        timed = {
            trial.variant.name: median(trial.seconds[target.key]) for trial in trials if target.key in trial.seconds
        }
        if timed:
            chosen[target.key] = min(timed, key=timed.__getitem__)
    return chosen


def ranking(trials: Sequence[Trial], wanted: Sequence[Target]) -> list[str]:
    """Variants that passed, fastest first at the first target; without timings, smallest file first."""
    key = wanted[0].key if wanted else ""
    passed = [trial for trial in trials if trial.passed]
    order = sorted(
        passed, key=lambda trial: (median(trial.seconds[key]) if key in trial.seconds else float("inf"), trial.bytes)
    )
    return [trial.variant.name for trial in order]


def report(
    title: str,
    source: Source,
    trials: Sequence[Trial],
    left_out: Mapping[str, str],
    wanted: Sequence[Target],
    baseline: Mapping[str, list[float]],
    *,
    baseline_metric: float | None = None,
    metric: Quantity = METRIC,
    notes: Sequence[str] = (),
) -> Report:
    """Every variant beside the eager module, losers and failures too; one run per round, so that rounds form pairs."""
    plain_bytes = float(sum(t.numel() * t.element_size() for t in state_of(source.plain).values()))
    rounds = max((len(values) for values in baseline.values()), default=1)
    runs = _samples(EAGER, rounds, baseline, {"file_bytes": plain_bytes, "error": 0.0, "metric": baseline_metric})
    for trial in trials:
        fixed = {"file_bytes": float(trial.bytes), "error": trial.verdict.error, "metric": trial.metric}
        why = {} if trial.passed else {target.key: f"it did not pass: {trial.verdict.reason}" for target in wanted}
        runs += _samples(trial.variant.name, rounds, trial.seconds, fixed, why, trial.variant.notes)
    quantities = [
        *(Quantity(t.key, t.label, "ms", better="lower", digits=3, scale=1e3, kind="speed") for t in wanted),
        FILE_SIZE,
        ERROR,
        *([metric] if baseline_metric is not None else []),
    ]
    return Report(
        title,
        EAGER,
        [replace(run, position=index) for index, run in enumerate(runs)],
        quantities,
        notes=[*notes, *source.call.notes, *(f"{name} is not there: {reason}." for name, reason in left_out.items())],
        versions=hardware.versions() | runtime_versions(),
        sections=_sections(trials, wanted),
    )


def _samples(
    name: str,
    rounds: int,
    seconds: Mapping[str, Sequence[float]],
    fixed: Mapping[str, float | None],
    missing: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> list[Sample]:
    return [
        Sample(
            name,
            index,
            quantities={**{key: values[index] for key, values in seconds.items()}, **fixed},
            missing=missing or {},
            notes=tuple(notes),
        )
        for index in range(rounds)
    ]


def _sections(trials: Sequence[Trial], wanted: Sequence[Target]) -> list[Section]:
    chosen = best(trials, wanted)
    if not chosen:
        return []
    floats = [trial for trial in trials if trial.variant.precision == FP32]
    rows = []
    for target in wanted:
        if target.key not in chosen:
            continue
        fast = next(trial for trial in trials if trial.variant.name == chosen[target.key])
        float_name = best(floats, [target]).get(target.key)
        rival = next((trial for trial in floats if trial.variant.name == float_name), None)
        ratio = "no fp32 variant" if rival is None else f"{_ratio(rival, fast, target):.2f}x"
        rate = target.batch / median(fast.seconds[target.key])
        rows.append(
            (target.label.removeprefix("latency, "), fast.variant.name, f"{rate:,.0f}/s", ratio, float_name or "")
        )
    headers = ("target", "fastest that passed", "throughput", "vs best fp32 runtime", "which is")
    return [Section("Fastest per target", headers=headers, rows=rows)]


def _ratio(slow: Trial, fast: Trial, target: Target) -> float:
    return median(a / b for a, b in zip(slow.seconds[target.key], fast.seconds[target.key], strict=True))


def runtime_versions() -> dict[str, str]:
    """Versions of the runtimes that are installed."""
    found = {}
    for name in ("onnx", "onnxscript", "onnxruntime", "openvino"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def under_signature(run: Run, source: Source) -> Callable[..., object]:
    """A variant under the module's own signature, for a metric; its outputs are of the classes of the module's."""
    with torch.no_grad():
        example = source.call.make(source.plain, copies(source.call.tensors))

    def call(*args: object, **kwargs: object) -> object:
        return in_form_of(example, rebuild(source.call.outputs, run(source.call.leaves(args, kwargs))))

    return call
