"""From a source to an artefact: build every variant, gate it, time it, write the folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from lightning_perf import hardware
from lightning_perf.deploy import compiled, inductor, onnx_runtime, openvino, parts
from lightning_perf.deploy.artifact import Artifact, new_folder, write_manifest
from lightning_perf.deploy.call import first_line
from lightning_perf.deploy.latency import Target, targets
from lightning_perf.deploy.source import PRECISIONS, NotExportable, Source
from lightning_perf.deploy.trial import (
    METRIC,
    Metric,
    Trial,
    best,
    gate,
    judge,
    race,
    ranking,
    report,
    runtime_versions,
)
from lightning_perf.deploy.variant import Variant
from lightning_perf.report import Quantity

Builder = Callable[[Source, str, Path], list[Variant]]

WHOLE: dict[str, Builder] = {
    onnx_runtime.NAME: onnx_runtime.build,
    openvino.NAME: openvino.build,
    inductor.NAME: inductor.build,
}
"""Runtimes that take a whole module as a graph, and need none of its code afterwards."""
PYTHON: dict[str, Builder] = {compiled.NAME: compiled.build, compiled.STORED: compiled.build_stored}
"""What is left for a module that no graph can hold."""
NAMES = (*WHOLE, parts.NAME, *PYTHON)


def choose_runtimes(runtimes: str | Sequence[str]) -> tuple[list[str], bool]:
    """The runtimes to build for, and whether they were asked for by name (then a missing one is an error).

    Raises:
        ValueError: an unknown name.

    Example::

        >>> choose_runtimes("openvino")
        (['openvino'], True)
    """
    if runtimes == "auto":
        return list(WHOLE), False
    names = [runtimes] if isinstance(runtimes, str) else list(runtimes)
    unknown = [name for name in names if name not in NAMES]
    if unknown or not names:
        raise ValueError(f"runtimes={runtimes!r}: unknown {unknown}; choose among {list(NAMES)}, or 'auto'.")
    return names, True


def check_precisions(precisions: Sequence[str]) -> list[str]:
    """The precisions, each known.

    Raises:
        ValueError: an unknown one, or none.
    """
    names = [precisions] if isinstance(precisions, str) else list(precisions)
    unknown = [name for name in names if name not in PRECISIONS]
    if unknown or not names:
        raise ValueError(f"precisions={precisions!r}: unknown {unknown}; choose among {list(PRECISIONS)}.")
    return names


def build_all(
    source: Source, folder: Path, builders: Mapping[str, Builder], precisions: Sequence[str], *, by_name: bool
) -> tuple[list[Variant], dict[str, str]]:
    """Every variant that can be made, and why the others cannot; of those nothing stays in the folder.

    Raises:
        ImportError: a runtime that was asked for by name is not installed.
    """
    made: list[Variant] = []
    left_out: dict[str, str] = {}
    for runtime, builder in builders.items():
        for precision in precisions:
            try:
                made += builder(source, precision, folder)
            except ImportError as error:
                if by_name:
                    raise
                left_out[f"{runtime}-{precision}"] = str(error)
            except (NotExportable, ValueError) as error:
                left_out[f"{runtime}-{precision}"] = str(error)
            except Exception as error:  # whatever else a runtime raises, over a module that it does not expect
                left_out[f"{runtime}-{precision}"] = f"it raises {first_line(error)}"
            else:
                continue
            for rest in folder.glob(f"{runtime}-{precision}*"):
                shutil.rmtree(rest, ignore_errors=True)
    return made, left_out


def write_artifact(
    source: Source,
    path: str | Path,
    *,
    runtimes: str | Sequence[str] = "auto",
    builders: Mapping[str, Builder] | None = None,
    precisions: Sequence[str] = PRECISIONS,
    batches: Sequence[int] = (1, 32),
    rounds: int = 9,
    tolerance: Mapping[str, float] | None = None,
    metric: Metric | None = None,
    metric_row: Quantity = METRIC,
    title: str = "export",
    facts: Mapping[str, Any] | None = None,
    left_out: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
    max_drop: float | None = None,
) -> Artifact:
    """Export a source to a new artefact folder.

    Args:
        source: the module in its forms.
        path: folder to write; an artefact that is there is replaced once the new one is complete.
        runtimes: names, or ``auto``: all that are installed.
        builders: further runtimes by name.
        precisions: among fp32, bf16, int8.
        batches: batch sizes to time.
        rounds: rounds of the timing; 0 times nothing.
        tolerance: accepted relative error per precision, where it differs from the gate's own.
        metric: called with a function of the module's signature; returns the number to report.
        metric_row: how the metric is shown.
        title: of the report.
        facts: further entries of the manifest.
        left_out: variants that the caller left out already, with reasons.
        notes: sentences for the report.
        max_drop: how much worse a variant's metric may be than the module's; None: any.

    Raises:
        ValueError: a name that is unknown, a path that is taken by something else, or nothing that could be exported.
        ImportError: a runtime that was asked for by name is missing.
    """
    names, by_name = choose_runtimes(runtimes)
    known = WHOLE | PYTHON | dict(builders or {})
    wanted_precisions = check_precisions(precisions)
    sizes = [source.call.batch_size or 1] if not any(source.call.batched) else list(batches)
    wanted: list[Target] = targets(sizes) if rounds else []
    with new_folder(path) as folder:
        variants, refused = build_all(
            source, folder, {name: known[name] for name in names}, wanted_precisions, by_name=by_name
        )
        reasons = dict(left_out or {}) | refused
        if not variants:
            raise NotExportable("nothing could be exported: " + "; ".join(f"{k}: {v}" for k, v in reasons.items()))
        trials = [gate(source, variant, folder, tolerance) for variant in variants]
        baseline_metric = None if metric is None else judge(source, trials, metric, metric_row, max_drop)
        baseline = race(source, trials, wanted, rounds) if rounds else {}
        made = report(
            title,
            source,
            trials,
            reasons,
            wanted,
            baseline,
            baseline_metric=baseline_metric,
            metric=metric_row,
            notes=notes,
        )
        content = {
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "versions": hardware.versions() | runtime_versions(),
            "machine": hardware.machine(),
            "signature": source.call.describe(),
            "variants": {trial.variant.name: entry(trial) for trial in trials},
            "left_out": reasons,
            "notes": list(notes),
            "best": best(trials, wanted),
            "ranking": ranking(trials, wanted),
            "metric": baseline_metric,
            **(facts or {}),
        }
        manifest = write_manifest(folder, content, made)
    return Artifact(Path(path), manifest, made)


def entry(trial: Trial) -> dict[str, Any]:
    """What the manifest says of one variant."""
    variant = trial.variant
    error = trial.verdict.error
    return {
        "runtime": variant.runtime,
        "precision": variant.precision,
        "path": variant.path,
        "options": dict(variant.options),
        "notes": list(variant.notes),
        "bytes": trial.bytes,
        "passed": trial.passed,
        "reason": trial.verdict.reason,
        "error": error if error < float("inf") else None,
        "metric": trial.metric,
        "seconds": {key: sorted(values)[len(values) // 2] for key, values in trial.seconds.items()},
    }
