"""The tables and the plot of docs/scaling.md: step times on paper, and how far they were from steps on emulated links.

    python -m benchmarks.ddp_scaling

Reads what ``python -m benchmarks.ddp`` measured; times nothing itself. Needs matplotlib (the extra ``report``).
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from statistics import median
from typing import Any, Literal

from benchmarks.ddp_parts import AGAIN, NOTHING, PARTS
from benchmarks.goals import RESULTS
from lightning_perf._optional import require
from lightning_perf.report import Report
from lightning_perf.strategies.link import Link
from lightning_perf.strategies.prediction import Wire, Work, predict

PAGE, PLOT = Path("docs/scaling.md"), Path("docs/scaling.svg")
START = "<!-- {}: written by `python -m benchmarks.ddp_scaling` -->\n"
END = "<!-- end of {} -->"
CHECKED = ("slow_link", "fast_link", "logs", "norms")
PRESETS = ("ddp", "perf_ddp_bf16", "perf_ddp_int8", "perf_local_sgd")
COLOURS = ("#4c566a", "#0072b2", "#d55e00", "#009e73", "#999999")
WORLD_SIZES = (2, 4, 8, 16, 64, 256, 1024, 4096)


def gpt2() -> Work:
    """A model of the size of GPT-2 (124M parameters); its seconds are taken as given, not measured."""
    block = (768, 768, 3 * 768 * 768, 3 * 768, 768 * 768, 768, 768, 768, 4 * 768 * 768, 4 * 768, 4 * 768 * 768, 768)
    return Work(0.040, 0.080, (50257 * 768, 1024 * 768, *12 * block, 768, 768), rest=0.010)


#: 10 Gbit/s Ethernet, and 400 Gbit/s with a network card for each GPU: seconds a message, seconds a byte.
NETWORKS = {"10 Gbit/s, 30 us": Wire(30e-6, 8 / 10e9), "400 Gbit/s, 8 us": Wire(8e-6, 8 / 400e9)}


def is_measured(part: str) -> bool:
    """Whether benchmarks/ddp.py has written a result of this part."""
    return (RESULTS / f"ddp_{part}.json").exists()


def measured(part: str) -> tuple[Report, Work, Wire]:
    """A result of benchmarks/ddp.py, and what its predictions were made from."""
    report = Report.from_json(RESULTS / f"ddp_{part}.json")
    alone = report.runs_of(NOTHING)
    step, forward, backward = (
        median(run.quantities[key] or 0.0 for run in alone) for key in ("step_seconds", "forward", "backward")
    )
    known = {key: value or 0.0 for key, value in alone[0].quantities.items()}
    settings = PARTS[part]
    sizes = [parameter.numel() for parameter in settings.module(NOTHING).parameters() if parameter.requires_grad]
    work = Work(
        forward,
        backward,
        sizes,
        max(step - settings.accumulate * (forward + backward), 0.0),
        settings.accumulate,
        int(known["buffer_bytes"]),
        settings.synced,
        {name: known[f"coding_{name}"] for name in ("bf16", "int8")},
    )
    return report, work, Wire.of(Link(known["latency"], known["bandwidth"]), world_size=2)


def check() -> str:
    """Predicted beside measured steps."""
    lines = ["| case | strategy | predicted ms | measured ms | error |", "|---|---|---|---|---|"]
    for part in filter(is_measured, CHECKED):
        report, work, wire = measured(part)
        for variant in report.variants:
            if variant in (AGAIN, NOTHING):
                continue
            found = median(value for value in report.values("step_seconds", variant) if value is not None)
            expected = predict(variant, work, wire, 2).seconds
            cells = (PARTS[part].title, f"`{variant}`", f"{1e3 * expected:.0f}", f"{1e3 * found:.0f}")
            lines.append(f"| {' | '.join(cells)} | {expected / found - 1:+.0%} |")
    return "\n".join(lines)


def table() -> str:
    """Steps of the model of 124M parameters on more and more devices."""
    head = ("network", "all-reduce", "strategy", *map(str, WORLD_SIZES))
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    algorithms: tuple[Literal["ring", "halving"], ...] = ("ring", "halving")
    for name, wire in NETWORKS.items():
        for algorithm in algorithms:
            sent = dataclasses.replace(wire, algorithm=algorithm)
            for preset in PRESETS:
                if preset != "perf_ddp_int8":  # above 4 processes it is perf_ddp_bf16
                    steps = (f"{1e3 * predict(preset, gpt2(), sent, size).seconds:.0f}" for size in WORLD_SIZES)
                    lines.append(f"| {name} | {algorithm} | `{preset}` | {' | '.join(steps)} |")
    return "\n".join(lines)


def draw() -> None:
    """Time of a step against bandwidth, by strategy, on both links that were measured."""
    matplotlib = require("matplotlib", extra="report", purpose="the plot of docs/scaling.md")
    figure = require("matplotlib.figure", extra="report", purpose="the plot of docs/scaling.md").Figure
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "scaling", "font.size": 9}):
        parts = [part for part in ("slow_link", "fast_link") if is_measured(part)]
        canvas = figure(figsize=(4.8 * len(parts), 3.8), layout="constrained")
        for axes, part in zip(canvas.subplots(1, len(parts), sharey=True, squeeze=False)[0], parts, strict=True):
            _panel(axes, part)
        canvas.axes[0].set_ylabel("milliseconds a step")
        canvas.axes[0].legend(fontsize=8)
        canvas.savefig(PLOT, metadata={"Date": None, "Creator": None})


def _panel(axes: Any, part: str) -> None:
    report, work, wire = measured(part)
    bandwidths = [10 ** (6 + step / 20) for step in range(61)]  # 1 MB/s to 1 GB/s
    for preset, colour in zip((*PRESETS, "nothing"), COLOURS, strict=True):
        variant = NOTHING if preset == "nothing" else preset
        wires = (dataclasses.replace(wire, beta=1 / bandwidth) for bandwidth in bandwidths)
        steps = [1e3 * predict(preset, work, one, 2).seconds for one in wires]
        axes.plot([bandwidth / 1e6 for bandwidth in bandwidths], steps, color=colour, label=variant)
        found = [1e3 * value for value in report.values("step_seconds", variant) if value is not None]
        axes.plot([1e-6 / wire.beta] * len(found), found, "o", color=colour, markersize=3.5)
    axes.set(xscale="log", yscale="log", xlabel="MB a second", title=f"{1e3 * wire.alpha:.1f} ms a message")
    axes.grid(visible=True, linewidth=0.4)


def main() -> None:
    """Write the tables and the plot."""
    page = PAGE.read_text(encoding="utf-8")
    for name, content in (("check", check()), ("table", table())):
        start, end = START.format(name), END.format(name)
        fresh = f"{start}\n{content}\n\n{end}"
        page = re.sub(re.escape(start) + ".*?" + re.escape(end), lambda _, fresh=fresh: fresh, page, flags=re.DOTALL)
    PAGE.write_text(page, encoding="utf-8")
    draw()
    print(check(), table(), sep="\n\n")


if __name__ == "__main__":
    main()
