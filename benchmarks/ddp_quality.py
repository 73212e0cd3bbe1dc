"""Validation loss after a fixed budget of bytes: the presets that round or part, against ``strategy="ddp"``.

    python -m benchmarks.ddp_quality             # runs what has no result file yet; may be stopped
    python -m benchmarks.ddp_quality --table     # the table of what there is

A decoder of 0.12M parameters on the default text of the language recipe, two processes with 8 x 32 bytes each a step, 5,000
steps (2.6M bytes, about four epochs), AdamW with warm-up and linear decay, float32. Everything that a run draws follows from
its seed, which all strategies share: three seeds, interleaved; a file per run. The loss is that of all held-out bytes.

Goals, set before. ``perf_ddp_bf16`` and ``perf_ddp_int8``: the mean difference from ddp, seed by seed, is at most the spread
of ddp over its seeds (largest minus smallest loss), worse or better. ``perf_local_sgd`` (an average every 8 steps after 100
synchronous ones, of weights and momentum, ``local_rate`` the square root of two as its guide has it for Adam): its mean
loss is at most 1 % above ddp's.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.goals import RESULTS
from benchmarks.links import LOOPBACK, torchrun
from lightning_perf import measuring
from lightning_perf.report import Quantity, Report, Run, json_text

FOLDER = RESULTS / "ddp_quality"
BASELINE = "ddp"
NEAR = ("perf_ddp_bf16", "perf_ddp_int8")
LOCAL = "perf_local_sgd"
VARIANTS = (BASELINE, *NEAR, LOCAL)
SEEDS, STEPS, RATE = 3, 5000, 8e-3
SECONDS = 1500  # more than the slowest run takes on two busy cores
MOST_WORSE = 1.01
LOSS = Quantity(
    "loss", "validation loss", "nats a byte", better="lower", digits=4, compare="difference", kind="quality"
)


def path_of(folder: Path, variant: str, seed: int) -> Path:
    """The file of one run."""
    return folder / f"{variant}_seed{seed}.json"


def run(variant: str, seed: int, steps: int, rate: float) -> Run:
    """One run, in two fresh processes."""
    with tempfile.TemporaryDirectory() as folder, measuring.watch_contention() as contention:
        out = Path(folder) / "out.json"
        words = (variant, str(seed), str(steps), repr(rate), str(out))
        torchrun(LOOPBACK, "benchmarks.ddp_quality_rank", *words, seconds=SECONDS)
        found = json.loads(out.read_text())
    quantities = {"loss": found["loss"], "train_seconds": found["seconds"]}
    return Run(variant, seed, 0, quantities=quantities, notes=(contention.result.sentence(),))


def run_missing(folder: Path, seeds: int, steps: int, rate: float, variants: Sequence[str]) -> None:
    """Run what has no file, seed by seed, the strategies in an order that changes."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, names in enumerate(measuring.schedule(variants, seeds)):
        for name in names:
            path = path_of(folder, name, seed)
            if path.exists():
                continue
            one = run(name, seed, steps, rate)
            content = json_text.dumps({"written": time.time(), "steps": steps, "rate": rate, **dataclasses.asdict(one)})
            path.with_suffix(".part").write_text(content, encoding="utf-8")
            path.with_suffix(".part").rename(path)
            print(f"{name}, seed {seed}: {one.value('loss'):.4f}, {one.value('train_seconds'):.0f} s", flush=True)


def read(folder: Path) -> dict[str, dict[int, Run]]:
    """The runs that have a file, by strategy and seed."""
    found: dict[str, dict[int, Run]] = {name: {} for name in VARIANTS}
    for name, runs in found.items():
        for path in sorted(folder.glob(f"{name}_seed*.json")):
            data = json_text.loads(path.read_text(encoding="utf-8"))
            del data["written"], data["steps"], data["rate"]
            one = Run(**data)
            runs[one.seed] = one
    return found


def losses(found: dict[str, dict[int, Run]], name: str, seeds: Sequence[int]) -> list[float]:
    """Losses of a strategy for these seeds."""
    values = [found[name][seed].value("loss") for seed in seeds]
    return [value for value in values if value is not None]


def verdicts(found: dict[str, dict[int, Run]]) -> list[str]:
    """How the goals stand, a line each; over the seeds that the strategy and ddp have both."""
    lines = []
    for name in VARIANTS[1:]:
        seeds = sorted(found[name].keys() & found[BASELINE].keys())
        ours, theirs = losses(found, name, seeds), losses(found, BASELINE, seeds)
        if len(seeds) < 2:
            lines.append(f"GOAL {name}: {len(seeds)} pairs, too few.")
            continue
        difference = statistics.fmean(ours) - statistics.fmean(theirs)
        if name == LOCAL:
            ratio = statistics.fmean(ours) / statistics.fmean(theirs)
            text, met = f"loss <= {MOST_WORSE:g}x that of ddp: {ratio:.4f}x", ratio <= MOST_WORSE
        else:
            spread = max(theirs) - min(theirs)
            text, met = f"within {spread:.4f} of ddp: {difference:+.4f}", abs(difference) <= spread
        lines.append(f"GOAL {name}, {len(seeds)} seeds: {text}: {'met' if met else 'NOT met'}")
    return lines


def report_of(found: dict[str, dict[int, Run]]) -> Report:
    """All runs as a report."""
    runs = [dataclasses.replace(one, notes=()) for name in VARIANTS for one in found[name].values()]
    said = [note for ones in found.values() for one in ones.values() for note in one.notes]
    busy = sum(not note.startswith("The machine was quiet") for note in said)
    notes = (
        "Two processes with 8 x 32 bytes each a step on this machine; time is not what is compared here.",
        f"During {busy} of {len(runs)} runs somebody else wanted the machine, which changes no loss.",
    )
    return Report("validation loss after 2.6M bytes, decoder of 0.12M parameters", BASELINE, runs, [LOSS], notes=notes)


def main(args: Sequence[str] | None = None) -> None:
    """Run what is missing, then print the table and the goals."""
    parser = argparse.ArgumentParser("python -m benchmarks.ddp_quality")
    parser.add_argument("--table", action="store_true", help="only print what there is")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--steps", type=int, help="shorter runs, for a look; needs --folder")
    parser.add_argument("--rate", type=float, help=f"another learning rate than {RATE:g}, for a look; needs --folder")
    parser.add_argument("--only", choices=VARIANTS, action="append", help="run this one; may be given twice")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the result files are")
    known = parser.parse_args(args)
    if known.steps is not None and known.folder == FOLDER:
        parser.error(f"--steps {known.steps}: shortened runs are no results; name another --folder.")
    if known.rate is not None and known.folder == FOLDER:
        parser.error(f"--rate {known.rate:g}: only runs at {RATE:g} are results; name another --folder.")
    if not known.table:
        run_missing(known.folder, known.seeds, known.steps or STEPS, known.rate or RATE, known.only or VARIANTS)
    found = read(known.folder)
    if not found[BASELINE]:
        print("no run of ddp, so that there is nothing to compare with.")
        return
    report = report_of(found)
    print(report.table())
    print(*verdicts(found), sep="\n")
    if known.folder == FOLDER:
        report.to_json(RESULTS / "ddp_quality.json")


if __name__ == "__main__":
    main()
