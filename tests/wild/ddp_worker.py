"""Every wild module under every preset, on two ranks that share one process group; see ``test_presets.py``."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from lightning_perf.strategies.presets import PRESETS
from tests.ranks import run_cases
from tests.wild.cases import CASES, Case
from tests.wild.runs import SEEDS, Run, fit, score

#: Two synchronous steps, then an average every other step: a fit of eight steps sees both.
ARGUMENTS: dict[str, dict[str, Any]] = {"perf_local_sgd": {"average_every": 2, "warmup_steps": 2}}


def main(out: str, *only: str) -> None:
    """``only``: names of cases; all that are installed without."""
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    folder = Path(out).parent
    cases: dict[str, Callable[[], Any]] = {"start": start_group}
    for case in CASES:
        if (not only or case.name in only) and case.missing() is None:
            cases[case.name] = lambda case=case: under_presets(case, folder / case.name)
    run_cases(cases, Path(out))


def start_group() -> dict[str, Any]:
    """The process group that all fits share, whether or not the first module survives."""
    dist.init_process_group("gloo")
    return {"ranks": dist.get_world_size()}


def under_presets(case: Case, folder: Path) -> dict[str, Any]:
    """What plain ddp gives, and what each preset does beside it."""
    plain = [attempt(case, "ddp", folder / f"ddp{seed}", seed) for seed in range(SEEDS)]
    told: dict[str, Any] = {"ddp": [verdict(run, plain[0]) for run in plain]}
    if isinstance(plain[0], Run):
        for name in PRESETS:
            told[name] = verdict(attempt(case, strategy_of(case, name), folder / name, 0), plain[0])
    return told


def strategy_of(case: Case, preset: str) -> Any:
    """The preset by its name, or with arguments where a short fit needs them."""
    if preset not in ARGUMENTS:
        return preset
    import lightning_perf as lp

    kind = lp.PerfDDP if case.namespace == "lightning.pytorch" else lp.pl.PerfDDP
    return kind(preset=preset, **ARGUMENTS[preset])


def attempt(case: Case, strategy: Any, folder: Path, seed: int) -> Run | str:
    """The run, or what all ranks died of: a table of failures has to go on after one."""
    error = ""
    run = None
    try:
        run = fit(case, [], folder, seed=seed, devices=2, strategy=strategy, **case.ddp)
    except Exception as failure:
        error = f"{type(failure).__name__}: {failure}"
    errors: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(errors, error)
    if any(errors):
        return next(one for one in errors if one)
    assert run is not None
    return run


def verdict(run: Run | str, plain: Run | str) -> dict[str, Any]:
    """The numbers of a run beside those of plain ddp with the same seed, as rank zero writes them."""
    if isinstance(run, str):
        return {"error": run}
    if run.refusal is not None:
        return {"refusal": str(run.refusal)}
    assert isinstance(plain, Run)
    assert run.weights is not None
    assert plain.weights is not None
    mine = torch.cat([run.weights[name].double().flatten() for name in run.parameters])
    gathered = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, mine)
    return {
        "steps": run.steps,
        "keys": list(run.weights) == list(plain.weights),
        "weights": everywhere(all(same(run.weights[name], plain.weights[name]) for name in run.parameters)),
        "buffers": all(same(value, plain.weights[key]) for key, value in run.weights.items()),
        "losses": everywhere(run.losses == plain.losses),
        "metrics": everywhere(run.metrics == plain.metrics),
        "equal_ranks": torch.equal(*gathered),
        "loss": everyones_mean(score(run)),
    }


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Bit for bit, and NaN where NaN is."""
    return torch.equal(left, right) or bool(
        torch.allclose(left.double(), right.double(), rtol=0, atol=0, equal_nan=True)
    )


def everywhere(flag: bool) -> bool:
    """Whether it holds on every rank."""
    vote = torch.tensor([int(flag)])
    dist.all_reduce(vote, op=dist.ReduceOp.MIN)
    return bool(vote.item())


def everyones_mean(value: float) -> float:
    """The mean over ranks."""
    total = torch.tensor([value], dtype=torch.float64)
    dist.all_reduce(total)
    return float(total / dist.get_world_size())


if __name__ == "__main__":
    main(*sys.argv[1:])
