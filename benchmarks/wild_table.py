"""Write the tables of docs/wild.md: every callback and preset on every module of others, refusals and failures included.

    make wild && python -m benchmarks.wild_table

Each cell is one run of two short epochs on one thread beside the run without us, from the same seed; how far seeds
of the run without us lie apart is the noise. Presets run on two processes. No timing.
"""

from __future__ import annotations

import importlib.metadata
import logging
import math
import re
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lightning_perf.hardware import bfloat16_is_native
from lightning_perf.strategies.presets import PRESETS
from tests import ranks
from tests.contract.rows import Row
from tests.wild.cases import CASES, Case
from tests.wild.runs import EPOCHS, EVERY_ROW, LOSSLESS, SEEDS, TRAIN_BATCHES, Run, callbacks_of, fit, noise, score

PAGE = Path("docs/wild.md")
START = "<!-- written by `python -m benchmarks.wild_table` -->\n"
END = "<!-- end of written -->"
PACKAGES = ("torch", "lightning", "chemprop", "pytorch-forecasting", "datamol")


def attempt(case: Case, row: Row | None, folder: Path, resume: Path | None = None, *, seed: int = 0) -> Run | Exception:
    """The run, or what it died of: a table of failures has to go on after one."""
    try:
        return fit(case, [] if row is None else callbacks_of(row), folder, resume, seed=seed)
    except Exception as error:
        return error


def cell(case: Case, row: Row, ours: Run | Exception, plain: Run, scores: Sequence[float]) -> str:
    """What one callback did on one module."""
    if isinstance(ours, Exception):
        return f"**fails**: {type(ours).__name__}"
    if ours.refusal is not None:
        return "refuses"
    if ours.steps != plain.steps:
        return f"**{ours.steps} of {plain.steps} steps**"
    if row.reshapes:
        return f"{moved(score(ours), scores)}, {weights_of(ours) / weights_of(plain):.0%} of the weights"
    largest = difference(case, ours, plain)
    if largest == 0:
        return "identical"
    if row.lossless is not None:
        words = f"{largest:.0e}"
        return words if row.lossless == "rounding" else f"**differs by {words}**"
    return moved(score(ours), scores)


def moved(loss: float, plain: Sequence[float]) -> str:
    """A loss beside the first of those without us, and whether the seeds alone explain it."""
    if not math.isfinite(loss):
        return f"{plain[0]:.4g} → **{loss:.4g}**"
    apart = loss - plain[0]
    word = "" if abs(apart) <= noise(plain) else ", worse" if apart > 0 else ", better"
    return f"{plain[0]:.4g} → {loss:.4g}{word}"


def weights_of(run: Run) -> int:
    """How many numbers its state holds."""
    assert run.weights is not None
    return sum(value.numel() for value in run.weights.values())


def difference(case: Case, ours: Run, plain: Run) -> float:
    """The largest difference of a weight or a metric; parameters that hold nothing but rounding are left out."""
    assert ours.weights is not None
    assert plain.weights is not None
    seen = [key for key in plain.weights if not re.fullmatch(case.noise, key)]
    apart = [float((ours.weights[key].double() - plain.weights[key].double()).abs().max()) for key in seen]
    metrics = plain.metrics or {}
    return max([*apart, *(abs((ours.metrics or {})[name] - value) for name, value in metrics.items())])


def resumed(case: Case, whole: Run | Exception, folder: Path) -> str:
    """Whether ``lossless()`` repeats its own run from the checkpoint of the first epoch."""
    if isinstance(whole, Exception) or whole.weights is None:
        return "no run"
    again = attempt(case, LOSSLESS, folder, whole.first_epoch)
    if isinstance(again, Exception):
        return f"**fails**: {type(again).__name__}"
    assert again.weights is not None
    same = all(torch.equal(value, again.weights[key]) for key, value in whole.weights.items())
    return "identical" if same and again.losses == whole.losses[TRAIN_BATCHES:] else "**differs**"


def line(case: Case, folder: Path) -> str:
    """One module's row of the table."""
    plain = attempt(case, None, folder / "plain")
    if isinstance(plain, Exception):
        return f"| {case.name} | **fails without us**: {type(plain).__name__} |"
    others = [attempt(case, None, folder / f"plain{seed}", seed=seed) for seed in range(1, SEEDS)]
    scores = [score(run) for run in (plain, *others) if isinstance(run, Run)]
    runs = {row.name: attempt(case, row, folder / str(index)) for index, row in enumerate(EVERY_ROW)}
    cells = [f"{min(scores):.4g} to {max(scores):.4g}"]
    cells += [cell(case, row, runs[row.name], plain, scores) for row in EVERY_ROW]
    cells.append(resumed(case, runs[LOSSLESS.name], folder / "resumed"))
    return f"| {case.name} | {' | '.join(cells)} |"


def modules() -> list[str]:
    """What the names of the table stand for."""
    lines = ["| name | Lightning | what it is | traps |", "|---|---|---|---|"]
    for case in CASES:
        summary = (case.build.__doc__ or "").strip()
        lines.append(f"| {case.name} | `{case.namespace}` | {summary} | {', '.join(case.traps)} |")
    return lines


def table() -> list[str]:
    """All modules under all callbacks."""
    heads = ["loss without us", *(row.name for row in EVERY_ROW)]
    lines = [f"| module | {' | '.join(heads)} | resumed with lossless() |", "|---" * (len(heads) + 2) + "|"]
    with tempfile.TemporaryDirectory() as folder:
        lines += [line(case, Path(folder) / case.name) for case in CASES]
    return lines


def presets() -> list[str]:
    """All modules under all DDP presets, on two processes."""
    with tempfile.TemporaryDirectory() as folder:
        found = ranks.run("tests.wild.ddp_worker", Path(folder) / "results.json", 2, seconds=900)
    lines = [f"| module | ddp | {' | '.join(PRESETS)} |", "|---" * (len(PRESETS) + 2) + "|"]
    return lines + [f"| {case.name} | {' | '.join(preset_cells(found[case.name]))} |" for case in CASES]


def preset_cells(told: dict[str, Any]) -> list[str]:
    """One module under plain ddp and under every preset."""
    if "error" in told:
        return [f"**fails**: {told['error'].splitlines()[-1]}"]
    if any("error" in plain for plain in told["ddp"]):
        return [f"**fails without us**: {told['ddp'][0]['error'].partition(':')[0]}"]
    losses = [plain["loss"] for plain in told["ddp"]]
    cells = [f"{min(losses):.4g} to {max(losses):.4g}"]
    for name in PRESETS:
        one = told[name]
        if "error" in one:
            cells.append(f"**fails**: {one['error'].partition(':')[0]}")
        elif "refusal" in one:
            cells.append("refuses")
        elif one["steps"] != told["ddp"][0]["steps"] or not (one["keys"] and one["equal_ranks"]):
            cells.append("**other steps, keys or ranks**")
        elif all(one[what] for what in ("weights", "buffers", "losses", "metrics")):
            cells.append("identical")
        else:
            cells.append(moved(one["loss"], losses))
    return cells


def main() -> None:
    """Replace what stands between the two marks."""
    absent = [reason for case in CASES if (reason := case.missing())]
    if absent:
        raise SystemExit(f"benchmarks.wild_table: {absent[0]}")
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    bfloat16 = "with" if bfloat16_is_native() else "without"
    foot = f"{EPOCHS} epochs of {TRAIN_BATCHES} batches, one thread of a CPU {bfloat16} native bfloat16; {versions}."
    text = "\n".join([*modules(), "", *table(), "", *presets(), "", foot])
    before, rest = PAGE.read_text(encoding="utf-8").split(START)
    after = rest.split(END, 1)[1]
    PAGE.write_text(f"{before}{START}\n{text}\n\n{END}{after}", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
