"""Write the measured tables of the README and of the guides on optimizers and export: no number there is typed by hand.

python -m benchmarks.readme
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median

from benchmarks import readme_ddp, readme_deploy
from benchmarks.goals import RESULTS
from lightning_perf.measuring import Interval
from lightning_perf.report import Quantity, Report
from lightning_perf.report.rows import comparison_text

README, OPTIMIZERS, EXPORT = Path("README.md"), Path("docs/guides/optimizers.md"), Path("docs/guides/export.md")
START = "<!-- measured: written by `python -m benchmarks.readme` from benchmarks/results -->\n"
END = "<!-- end of measured -->"
# what is measured, the result file, the quantity, the variant, the goal that was set before
ROWS = (
    (
        "image recipe (ResNet-20, batch 128): `lossless.yaml`",
        "image_recipe",
        "samples_per_second",
        "lossless",
        ">= 1.3x",
    ),
    ("image recipe: `fast.yaml`", "image_recipe", "samples_per_second", "fast", ">= 1.9x"),
    (
        "language model recipe (0.84M, 32 x 128 bytes): `lossless.yaml`",
        "language_recipe",
        "samples_per_second",
        "lossless",
        "none set",
    ),
    ("language model recipe: `fast.yaml`", "language_recipe", "samples_per_second", "fast", "none set"),
    ("MLP, 1 ms of compute a step, 5 logs: `lossless()`", "small_step", "samples_per_second", "lossless()", ">= 2x"),
    (
        "Lightning's demo transformer: `lossless()`",
        "demo_transformer",
        "samples_per_second",
        "lossless()",
        "low >= 0.98x",
    ),
    ("Lightning's demo LSTM: `lossless()`", "demo_lstm", "samples_per_second", "lossless()", "low >= 0.98x"),
    (
        'time to 85 %, CNN on Fashion-MNIST: `OptimizerFactory("auto")`',
        "time_to_target/fashion",
        "seconds_to_target",
        "auto",
        ">= 1.33x",
    ),
    *(
        (
            f'time to the target, {task}: `OptimizerFactory("auto")`',
            f"time_to_target/{task}",
            "seconds_to_target",
            "auto",
            ">= 0.91x, median > 1.11x",
        )
        for task in ("image", "language", "tabular")
    ),
    (
        "training step of the image recipe: `QuantizationAwareTraining()`",
        "qat_step_image",
        "cpu_seconds",
        "QuantizationAwareTraining",
        ">= 0.57x",
    ),
    (
        "training step of the language recipe: `QuantizationAwareTraining()`",
        "qat_step_language",
        "cpu_seconds",
        "QuantizationAwareTraining",
        ">= 0.67x",
    ),
    ("AdamW step, 10M in 200 tensors", "optimizer_step_200_tensors", "cpu_seconds", "OptimizerFactory()", ">= 2.22x"),
    ("AdamW step, 10M in 6 tensors", "optimizer_step_6_tensors", "cpu_seconds", "OptimizerFactory()", ">= 5x"),
    (
        'two hosts, 10 ms one way, MLP, 5 `sync_dist` metrics: `strategy="perf_ddp"`',
        "ddp_logs",
        "step_seconds",
        "perf_ddp",
        ">= 2x",
    ),
    ("the same link, 20 batch norms, accumulation 4: `perf_ddp`", "ddp_norms", "step_seconds", "perf_ddp", ">= 1.4x"),
    (
        "loopback, language model of 1.4M, nothing to gain: `perf_ddp`",
        "ddp_loopback",
        "step_seconds",
        "perf_ddp",
        "low >= 0.97x",
    ),
    *(
        (
            f"two hosts, 100 Mbit/s and 10 ms, language model of 1.4M: of the gain that no exchange would give, `{preset}`",
            "ddp_slow_link",
            "gain_share",
            preset,
            goal,
        )
        for preset, goal in (
            ("perf_ddp_bf16", ">= 60 %"),
            ("perf_ddp_int8", ">= 60 %"),
            ("perf_local_sgd", ">= 80 %"),
        )
    ),
)


def row(label: str, name: str, key: str, variant: str, goal: str) -> str:
    """One line: ratio with interval, memory and metric beside it, goal, baseline, file."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return f"| {label} | not measured yet | | | {goal} | |"
    report = Report.from_json(path)
    ratio = report.comparison(key, variant)
    known = {quantity.key for quantity in report.quantities}
    memory = report.ratio("peak_memory", variant) if "peak_memory" in known else None
    resolved = memory is not None and (memory.low > 1 or memory.high < 1)
    metric = report.difference("final_metric", variant) if "final_metric" in known else None
    unit = report.quantity("final_metric") if metric is not None else None
    quality = "weights equal to 1e-6" if "state" in known else "no validation"
    state = "same optimizer state" if "state" in known else "not measured"
    if metric is not None and unit is not None:
        quality = _metric(metric, unit)
    cells = [
        label,
        _speed(report, key, variant, ratio),
        _memory(report, memory, resolved, variant) if memory is not None else state,
        quality,
        goal,
        f"vs {report.baseline} ([raw](benchmarks/results/{name}.json))",
    ]
    return f"| {' | '.join(cells)} |"


def _speed(report: Report, key: str, variant: str, ratio: Interval | None) -> str:
    """The ratio; beside a time to a target, in how many runs the target was reached, if not in all."""
    values = report.values(key, variant)
    reached = sum(value is not None for value in values)
    if "target" in key and reached < len(values):
        rest = "" if ratio is None else f", {ratio} there"
        return f"**target reached in {reached} of {len(values)} runs**{rest}"
    return "not measured" if ratio is None else f"**{comparison_text(report.quantity(key), ratio)}**"


def _metric(difference: Interval, unit: Quantity) -> str:
    low, middle, high = (
        f"{value * unit.scale:+.2f}" for value in (difference.low, difference.estimate, difference.high)
    )
    return f"{unit.label} {middle} {unit.unit.replace('%', 'points')} [{low}, {high}]"


def _memory(report: Report, ratio: Interval, resolved: bool, variant: str) -> str:
    if any("depends on" in note and "peak" in note for note in report.notes):
        return "not comparable: all runs in one process"
    values = [value for value in report.values("peak_memory", variant) if value is not None]
    quantity = report.quantity("peak_memory")
    words = f"{1 / ratio.estimate:.2f}x" if resolved else "no difference resolved"
    return f"{quantity.text(median(values))}, {words}"


def self_log_rows() -> list[str]:
    """The cost of ``self.log``, which has a file format of its own: overhead over the same step without a log."""
    path = RESULTS / "self_log.json"
    if not path.exists():
        return []
    data = json.loads(path.read_text(encoding="utf-8"))
    return [
        f"| overhead of {one['name']}: `FastLogging()` | **{one['cpu']['ratio']:.2f}x the cost** "
        f"[{max(one['cpu']['low'], 0):.2f}, {one['cpu']['high']:.2f}] | not measured | bit-identical (tests) | "
        f"<= {one['goal']:.2f}x the cost | vs stock `self.log` ([raw](benchmarks/results/self_log.json)) |"
        for one in data["rows"]
        if one["goal"] is not None
    ]


def optimizer_rows() -> list[str]:
    """Steps of the optimizers of our own: speed against torch's, optimizer state beside it."""
    rows = []
    for name, variants, goals in (
        (
            "optimizer_zoo",
            ("schedule_free_adamw", "lion", "prodigy", "ademamix"),
            (1 / 0.85, 1 / 0.7, 1 / 1.5, 1 / 1.5),
        ),
        ("newton_schulz", ("muon",), (12.0,)),
        ("muon_step_resnet20", ("muon",), (1.0,)),
        ("muon_step_6_matrices", ("muon",), (1.0,)),
    ):
        path = RESULTS / f"{name}.json"
        if not path.exists():
            continue
        report = Report.from_json(path)
        for variant, goal in zip(variants, goals, strict=True):
            ratio = report.ratio("cpu_seconds", variant)
            states = (
                {one: report.values("state", one)[0] for one in (report.baseline, variant)}
                if _has(report, "state")
                else {}
            )
            memory = (
                " vs ".join(f"{(value or 0) / 1e6:.0f} MB" for value in reversed(states.values())) or "not measured"
            )
            rows.append(
                f"| `{variant}`: {report.title} | **{ratio}** | state {memory} | equal to its formulas (tests) | "
                f">= {goal:.2f}x | vs {report.baseline} ([raw](benchmarks/results/{name}.json)) |"
            )
    return rows


def _has(report: Report, key: str) -> bool:
    return any(quantity.key == key for quantity in report.quantities)


def profiler_rows() -> list[str]:
    """What a profile costs per step, and how far its expectations are off."""
    rows = []
    path = RESULTS / "profiler_overhead.json"
    if path.exists():
        data = json.loads(path.read_text(encoding="utf-8"))
        for one in data["rows"]:
            cost, ratio = one["cost_microseconds"], one["ratio"]
            rows.append(
                f"| `ThroughputProfiler()`, step of {one['step_microseconds'] / 1e3:.1f} ms | **{cost[0]:+.1f} us a step** "
                f"[{cost[1]:+.1f}, {cost[2]:+.1f}], {ratio[0] - 1:+.1%} | not measured | bit-identical (tests) | "
                f"{data['goals'][one['name']]} | vs no profiler ([raw](benchmarks/results/profiler_overhead.json)) |"
            )
    path = RESULTS / "advice.json"
    if path.exists():
        data = json.loads(path.read_text(encoding="utf-8"))
        tried = [one for one in data["rows"] if one["real"] is not None]
        rows.append(
            f"| advice of `ThroughputProfiler`: expected vs real gain | **median error {data['median_error']:.0%}** | | | "
            f"published | {len(tried)} levers ([raw](benchmarks/results/advice.json)) |"
        )
    return rows


def pruning_rows() -> list[str]:
    """What masks cost per step."""
    path = RESULTS / "mask_cost.json"
    if not path.exists():
        return []
    data = json.loads(path.read_text(encoding="utf-8"))
    return [
        f"| `MagnitudePruning(0.9)`, {one['name']}: a training step | **{one['ratio'][0]:.3f}x the time** "
        f"[{one['ratio'][1]:.3f}, {one['ratio'][2]:.3f}] | one bit a weight | masks hold (tests) | {data['goal']} | "
        f"vs no masks ([raw](benchmarks/results/mask_cost.json)) |"
        for one in data["rows"]
    ]


def machine() -> str:
    """The machine of the image recipe's result, as that file has it: not the one that writes the page."""
    path = RESULTS / "image_recipe.json"
    if not path.exists():
        return ""
    report = Report.from_json(path)
    facts = ", ".join(f"{key} {value}" for key, value in report.machine.items() if value is not None)
    return (
        f"The image recipe was measured on: {facts}; torch {report.versions.get('torch')}, "
        f"lightning {report.versions.get('lightning')}. "
        "Every file names its own machine.\n"
    )


def main() -> None:
    """Write the README's table, and that of the optimizers' steps into their guide."""
    head = "| what | speed | peak memory | metric | goal | baseline and samples |\n|---|---|---|---|---|---|\n"
    table = (
        head
        + "\n".join(
            [
                *(row(*one) for one in ROWS),
                *readme_ddp.auto_rows(),
                *readme_ddp.quality_rows(),
                *self_log_rows(),
                *profiler_rows(),
                *readme_deploy.runtime_rows(),
                *readme_deploy.accuracy_rows(),
                *readme_deploy.serving_rows(),
                *pruning_rows(),
            ]
        )
        + "\n\n"
        + machine()
    )
    _replace(README, table)
    steps = head.replace("peak memory", "optimizer state") + "\n".join(optimizer_rows()) + "\n\n" + machine()
    _replace(EXPORT, f"{readme_deploy.guide_table()}\n{machine()}")
    readme_deploy.draw()
    _replace(OPTIMIZERS, steps.replace("(benchmarks/", "(../../benchmarks/"))
    print(table, steps, sep="\n")


def _replace(page: Path, table: str) -> None:
    """Put ``table`` between the two marks of a page."""
    before, rest = page.read_text(encoding="utf-8").split(START)
    page.write_text(f"{before}{START}\n{table}\n{END}{rest.split(END, 1)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
