"""DDP presets between two hosts, each one process on one core: step time against ``strategy="ddp"``.

    python -m benchmarks.ddp [PART ...] [--rounds N --out FOLDER]

The hosts are network namespaces joined by a link of known rate and delay (benchmarks/links.py); without root everything but
the parts on loopback is skipped, with the reason. All variants of a part are fitted once a round, in one process group,
in an order that changes; equal rounds form pairs, and ddp beside ddp shows what the machine resolves. Links, modules
and goals stand in benchmarks/ddp_parts.py. Beside each step stands what ``strategies/prediction.py`` expects from the
compute measured without exchange and the link measured by ``lightning-perf link``.

- 5 ``sync_dist`` metrics, 10 ms one way: ``perf_ddp`` >= 2x; 20 batch norms, accumulation 4, 10 ms: >= 1.4x;
  nothing to gain, loopback: lower bound >= 0.97x.
- GPT of 1.4M parameters, 100 Mbit/s and 10 ms: of the gain of no exchange at all, bf16 and int8 >= 60 %, local SGD (H=8)
  >= 80 %.
- ``perf_ddp_auto`` on three links: >= 0.9 of the speed of the best preset of its pool, at a cost of <= 60 steps.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
import tempfile
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.ddp_parts import AGAIN, AUTO, BASELINE, NOTHING, PARTS, Part
from benchmarks.goals import Goal, publish
from benchmarks.links import LOOPBACK, Hosts, hosts, torchrun, why_not
from lightning_perf import measuring
from lightning_perf.report import Quantity, Report, Run, Section
from lightning_perf.strategies.link import Link
from lightning_perf.strategies.prediction import Wire, Work, predict

STEP = Quantity("step_seconds", "time of a step", "ms", better="lower", digits=1, scale=1e3, kind="speed")
SHARE = Quantity(
    "gain_share", "share of the gain of no exchange", "%", better="higher", digits=0, compare="difference", scale=100
)
OF_BEST = Quantity("of_best", "speed, of the best preset's", "", better="higher", compare="difference")
TRIALS = Quantity("trial_steps", "start, beyond ddp's", "steps", better="lower", digits=0, compare="difference")


@dataclass(frozen=True)
class Level(Goal):
    """A goal for a quantity itself, and not for its comparison with the baseline."""

    def judge(self, report: Report) -> str:
        """One line: the goal, the interval of the median, met or not met."""
        quantity = report.quantity(self.quantity)
        values = [value for value in report.values(self.quantity, self.variant) if value is not None]
        level = measuring.paired_difference(values, [0.0] * len(values))
        most = quantity.better == "lower"
        met = level.estimate <= self.value if most else level.estimate >= self.value
        return (
            f"{self.variant}, {quantity.label}: goal {'<=' if most else '>='} {quantity.text(self.value)}; measured "
            f"{level.text(quantity.digits, f' {quantity.unit}', quantity.scale)}: {'met' if met else 'NOT met'}"
        )


def why_not_part(part: Part) -> str | None:
    """Why a part cannot be measured here; None if it can."""
    missing = {variant for _, variant, _, _ in part.goals} - set(part.variants)
    if missing:
        return f"this release has no {', '.join(sorted(missing))}"
    return None if part.rate is None else why_not()


def measure(name: str, rounds: int) -> Report:
    """Run a part on its link, and report."""
    part = PARTS[name]
    link: AbstractContextManager[Hosts] = nullcontext(LOOPBACK)
    if part.rate is not None:
        link = hosts(part.rate, part.delay or 0.0)
    with tempfile.TemporaryDirectory() as folder, link as pair, measuring.watch_contention() as watch:
        out = Path(folder) / "runs.json"
        torchrun(pair, "benchmarks.ddp_rank", name, str(rounds), str(out), seconds=580)
        data = json.loads(out.read_text())
    return report_of(part, data, watch.result.sentence())


def report_of(part: Part, data: dict[str, Any], contention: str) -> Report:
    """The report of what the ranks measured."""
    by_round: dict[int, dict[str, dict[str, Any]]] = {}
    for run in data["runs"]:
        by_round.setdefault(run["round"], {})[run["variant"]] = run
    pool = [variant for variant in part.variants if variant not in (AGAIN, AUTO, NOTHING)]
    median = {variant: statistics.median(_seconds(by_round, variant)) for variant in part.variants}
    best = min(pool, key=lambda variant: median[variant])
    known = {key: data[key] for key in ("latency", "bandwidth", "buffer_bytes")}  # what benchmarks.ddp_scaling reads
    known |= {f"coding_{name}": seconds for name, seconds in data["coding"].items()}
    runs = []
    for position, run in enumerate(data["runs"]):
        others = by_round[run["round"]]
        seconds, plain = run["step_seconds"], others[BASELINE]["step_seconds"]
        quantities = {"step_seconds": seconds, **{key: run[key] for key in ("forward", "backward")}, **known}
        if NOTHING in others:
            quantities["gain_share"] = (plain - seconds) / (plain - others[NOTHING]["step_seconds"])
        if AUTO in others:
            quantities["of_best"] = others[best]["step_seconds"] / seconds
            quantities["trial_steps"] = (run["before_seconds"] - others[BASELINE]["before_seconds"]) / median[BASELINE]
        runs.append(
            Run(
                run["variant"],
                run["round"],
                position,
                quantities=quantities,
                samples={"step": tuple(run["steps"])},
                notes=(run["chosen"],) if run["chosen"] else (),
            )
        )
    resolution = None
    if AGAIN in part.variants:
        resolution = measuring.resolution(_seconds(by_round, AGAIN), _seconds(by_round, BASELINE))
    optional = [(NOTHING, SHARE), (AUTO, OF_BEST), (AUTO, TRIALS)]
    return Report(
        part.title,
        BASELINE,
        runs,
        [STEP, *(quantity for variant, quantity in optional if variant in part.variants)],
        notes=(
            f"The link by its probe: an all-reduce of nothing takes {data['latency'] * 1e3:.2f} ms, a second carries "
            f"{data['bandwidth'] / 1e6:.1f} MB.",
            "Two processes, one core each; a step's time is the mean over a fit, of the slower process.",
            contention,
        ),
        resolution=resolution,
        sections=[on_paper(part, data, by_round, median)] if NOTHING in part.variants else (),
    )


def _seconds(by_round: dict[int, dict[str, dict[str, Any]]], variant: str) -> list[float]:
    return [runs[variant]["step_seconds"] for _, runs in sorted(by_round.items())]


def work_of(part: Part, data: dict[str, Any], alone: list[dict[str, Any]]) -> Work:
    """What a process does, from the runs in which nothing was exchanged."""
    step, forward, backward = (
        statistics.median(run[key] for run in alone) for key in ("step_seconds", "forward", "backward")
    )
    return Work(
        forward,
        backward,
        data["sizes"],
        rest=max(step - part.accumulate * (forward + backward), 0.0),
        accumulate=part.accumulate,
        buffer_bytes=int(data["buffer_bytes"]),
        synced=part.synced,
        coding=data["coding"],
    )


def on_paper(
    part: Part, data: dict[str, Any], by_round: dict[int, dict[str, dict[str, Any]]], median: dict[str, float]
) -> Section:
    """What the prediction says of each variant, beside what was measured."""
    work = work_of(part, data, [runs[NOTHING] for _, runs in sorted(by_round.items())])
    wire = Wire.of(Link(data["latency"], data["bandwidth"]), world_size=2)
    rows = []
    for variant in part.variants:
        if variant not in (AGAIN, NOTHING):
            expected = predict(variant, work, wire, 2).seconds
            cells = (f"{1e3 * value:.1f}" for value in (expected, median[variant]))
            rows.append((variant, *cells, f"{expected / median[variant] - 1:+.0%}"))
    return Section(
        "On paper",
        (
            f"From {1e3 * work.forward:.1f} ms of forward, {1e3 * work.backward:.1f} ms of backward and "
            f"{1e3 * work.rest:.1f} ms of the rest, measured without exchange, and the link's probe.",
        ),
        headers=("strategy", "predicted ms", "measured ms", "error"),
        rows=rows,
    )


def main() -> None:
    """Measure and publish the parts."""
    parser = argparse.ArgumentParser("python -m benchmarks.ddp")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--rounds", type=int, help="fits of every variant, for a look; needs --out")
    parser.add_argument("--out", type=Path, help="file for the report of one part, in place of benchmarks/results")
    known = parser.parse_args()
    unknown = sorted(set(known.parts) - set(PARTS))
    if unknown:
        parser.error(f"unknown part {unknown[0]!r}; the parts are {', '.join(PARTS)}.")
    if known.rounds is not None and known.out is None:
        parser.error(f"--rounds {known.rounds}: shortened runs are no results; name an --out.")
    if known.out is not None and len(known.parts) != 1:
        parser.error("--out is a file for one part; name that part.")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the ranks end too
    for name in known.parts or PARTS:
        part = PARTS[name]
        reason = why_not_part(part)
        if reason is not None:
            print(f"ddp_{name} skipped: {reason}.")
            continue
        report = measure(name, known.rounds or part.rounds)
        goals = [Goal(*goal) if goal[0] == "step_seconds" else Level(*goal) for goal in part.goals]
        if known.out is None:
            publish(report, f"ddp_{name}", goals)
            continue
        print(report.table())
        print(*(goal.judge(report) for goal in goals), sep="\n")
        report.to_json(known.out)


if __name__ == "__main__":
    main()
