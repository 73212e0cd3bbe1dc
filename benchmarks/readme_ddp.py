"""Rows of the strategies, for `benchmarks.readme`: what the automatic preset chose, and loss after equal bytes."""

from __future__ import annotations

from statistics import fmean

from benchmarks.readme_deploy import found, value
from lightning_perf.report.rows import comparison_text

#: Result file, name of the link.
LINKS = {
    "ddp_auto_loopback": "loopback",
    "ddp_auto_fast": "1 Gbit/s and 1 ms",
    "ddp_auto_slow": "100 Mbit/s and 10 ms",
}
GOALS = {
    "perf_ddp_bf16": "within ddp's seed spread",
    "perf_ddp_int8": "within ddp's seed spread",
    "perf_local_sgd": "within 1 %",
}


def auto_rows() -> list[str]:
    """What ``perf_ddp_auto`` gives and costs, link by link; the gain is the whole step's, against plain ddp."""
    rows = []
    for name, link in LINKS.items():
        report = found(name)
        if report is None:
            continue
        share, steps = (value(report, key, "perf_ddp_auto") for key in ("of_best", "trial_steps"))
        rows.append(
            f"| `perf_ddp_auto`, language model of 1.4M, {link} | **{report.ratio('step_seconds', 'perf_ddp_auto')}**; "
            f"{share:.2f} of the best of its pool, after {steps:.0f} steps of trials | not measured | "
            f"`torch.equal` to ddp (tests) | >= 0.90, <= 60 steps | vs ddp ([raw](benchmarks/results/{name}.json)) |"
        )
    return rows


def quality_rows() -> list[str]:
    """Validation loss after a fixed budget of bytes, with the spread over seeds that it is held against."""
    report = found("ddp_quality")
    if report is None:
        return []
    theirs = [one for one in report.values("loss", "ddp") if one is not None]
    rows = []
    for preset, goal in GOALS.items():
        difference = report.difference("loss", preset)
        if difference is None:
            continue
        words = comparison_text(report.quantity("loss"), difference)
        ours, level = fmean(one for one in report.values("loss", preset) if one is not None), fmean(theirs)
        rows.append(
            f"| loss after 5,000 steps, decoder of 0.12M, 2 processes, {len(theirs)} seeds: `{preset}` | not the subject | "
            f"not measured | **{words}**, means apart by {ours / level - 1:+.2%} (ddp {level:.4f}, seeds apart by "
            f"{max(theirs) - min(theirs):.4f}) | {goal} | vs ddp ([raw](benchmarks/results/ddp_quality.json)) |"
        )
    return rows
