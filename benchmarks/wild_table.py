"""Write the table of docs/wild.md: every callback on every module of others, what refuses and what fails included.

    make wild && python -m benchmarks.wild_table

Each cell is one run of two short epochs on one thread beside the run without us, from the same seed. No timing.
"""

from __future__ import annotations

import importlib.metadata
import logging
import re
import tempfile
import warnings
from pathlib import Path

import torch

from lightning_perf.hardware import bfloat16_is_native
from tests.contract.rows import Row
from tests.wild.cases import CASES, Case
from tests.wild.runs import EPOCHS, EVERY_ROW, LOSSLESS, TRAIN_BATCHES, Run, callbacks_of, fit

PAGE = Path("docs/wild.md")
START = "<!-- written by `python -m benchmarks.wild_table` -->\n"
END = "<!-- end of written -->"
PACKAGES = ("torch", "lightning", "chemprop", "pytorch-forecasting", "datamol")


def attempt(case: Case, row: Row | None, folder: Path, resume: Path | None = None) -> Run | Exception:
    """The run, or what it died of: a table of failures has to go on after one."""
    try:
        return fit(case, [] if row is None else callbacks_of(row), folder, resume)
    except Exception as error:
        return error


def cell(case: Case, row: Row, ours: Run | Exception, plain: Run) -> str:
    """What one callback did on one module."""
    if isinstance(ours, Exception):
        return f"**fails**: {type(ours).__name__}"
    if ours.refusal is not None:
        return "refuses"
    if ours.steps != plain.steps:
        return f"**{ours.steps} of {plain.steps} steps**"
    losses = f"loss {plain.losses[-1]:.4g} → {ours.losses[-1]:.4g}"
    if row.reshapes:
        return f"{losses}, {weights_of(ours) / weights_of(plain):.0%} of the weights"
    largest = difference(case, ours, plain)
    if largest == 0:
        return "identical"
    if row.lossless is not None:
        words = f"{largest:.0e}"
        return words if row.lossless == "rounding" else f"**differs by {words}**"
    return losses


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
    runs = {row.name: attempt(case, row, folder / str(index)) for index, row in enumerate(EVERY_ROW)}
    cells = [cell(case, row, runs[row.name], plain) for row in EVERY_ROW]
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
    heads = [row.name for row in EVERY_ROW]
    lines = [f"| module | {' | '.join(heads)} | resumed with lossless() |", "|---" * (len(heads) + 2) + "|"]
    with tempfile.TemporaryDirectory() as folder:
        lines += [line(case, Path(folder) / case.name) for case in CASES]
    return lines


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
    text = "\n".join([*modules(), "", *table(), "", foot])
    before, rest = PAGE.read_text(encoding="utf-8").split(START)
    after = rest.split(END, 1)[1]
    PAGE.write_text(f"{before}{START}\n{text}\n\n{END}{after}", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
