"""Step cost of AdamW on the CPU, 10M parameters in 200 and in 6 tensors: OptimizerFactory() vs what the user had.

    python -m benchmarks.optimizer_step

What the user had is ``torch.optim.AdamW(parameters)``: on a CPU torch then loops over the tensors. One thread, CPU and
wall time, interleaved in blocks in a random order. Goals: <= 0.45x and <= 0.2x of the user's step, that is >= 2.22x and
>= 5x faster.
"""

from __future__ import annotations

import torch

from benchmarks.goals import Goal, clocked, publish
from lightning_perf.optim.fused import make_fused
from lightning_perf.report import Quantity, Report

ROUNDS = 15
STEPS = 4
SHAPES = {"200 tensors": [(224, 224)] * 200, "6 tensors": [(1291, 1291)] * 6}
SECONDS = Quantity("cpu_seconds", "optimizer step, CPU time", "ms", better="lower", digits=2, scale=1e3, kind="other")
WALL = Quantity("wall_seconds", "optimizer step, wall time", "ms", better="lower", digits=2, scale=1e3, kind="other")
STATE = Quantity("state", "optimizer state", "MB", better="lower", digits=0, scale=1e-6, kind="memory")


def optimizer(shapes: list[tuple[int, int]], *, fused: bool) -> torch.optim.Optimizer:
    """AdamW over seeded parameters with gradients; after ``make_fused`` if asked."""
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(*shape, generator=generator)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    made = torch.optim.AdamW(parameters, lr=1e-3)
    if fused:
        assert make_fused(made).changed
    return made


def measure(label: str, shapes: list[tuple[int, int]]) -> tuple[Report, list[Goal]]:
    """Interleaved blocks of ``STEPS`` steps."""
    variants = {"the user's AdamW": optimizer(shapes, fused=False), "OptimizerFactory()": optimizer(shapes, fused=True)}
    steps = {name: made.step for name, made in variants.items()}
    for step in steps.values():
        step()
    states = {name: _state_bytes(made) for name, made in variants.items()}
    runs = clocked(steps, ROUNDS, repeats=STEPS, warmup=0, state=states)
    left, right = ([p for g in made.param_groups for p in g["params"]] for made in variants.values())
    gap = max(float((a - b).detach().abs().max()) for a, b in zip(left, right, strict=True))
    count = sum(parameter.numel() for parameter in left)
    report = Report(
        f"AdamW step, {count / 1e6:.1f}M parameters in {label}, 1 thread",
        "the user's AdamW",
        runs,
        [SECONDS, WALL, STATE],
        notes=[f"Largest difference of a weight after {ROUNDS * STEPS + 1} steps: {gap:.1e}."],
    )
    return report, [Goal("cpu_seconds", "OptimizerFactory()", 1 / 0.45 if label.startswith("200") else 1 / 0.2)]


def _state_bytes(made: torch.optim.Optimizer) -> float:
    return float(sum(v.numel() * v.element_size() for s in made.state.values() for v in s.values()))


def main() -> None:
    """Measure both shapes and publish."""
    torch.set_num_threads(1)
    for label, shapes in SHAPES.items():
        report, goals = measure(label, shapes)
        publish(report, f"optimizer_step_{label.replace(' ', '_')}", goals)


if __name__ == "__main__":
    main()
