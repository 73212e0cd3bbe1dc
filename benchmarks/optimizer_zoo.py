"""Step cost on the CPU of the optimizers of our own, and of Muon's Newton-Schulz beside torch's.

    python -m benchmarks.optimizer_zoo

One thread, CPU and wall time, interleaved in blocks in a random order. Goals: with 10M parameters in 200 tensors, of the
step of ``torch.optim.AdamW(parameters)`` (a loop over the tensors on a CPU): schedule-free AdamW at most 0.85x, Lion 0.7x,
Prodigy and AdEMAMix 1.5x. Orthogonalizing 200 matrices of 32x32 at least 12 times as fast as torch.optim.Muon does it; a
whole step of Muon never slower than torch's, at the shapes of ResNet-20 and for 10M parameters in 6 matrices.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import _muon

from benchmarks.goals import Goal, clocked, publish
from lightning_perf.optim.newton_schulz import orthogonalize
from lightning_perf.optim.registry import build
from lightning_perf.report import Quantity, Report

ROUNDS = 15
SECONDS = Quantity("cpu_seconds", "step, CPU time", "ms", better="lower", digits=2, scale=1e3, kind="other")
WALL = Quantity("wall_seconds", "step, wall time", "ms", better="lower", digits=2, scale=1e3, kind="other")
STATE = Quantity("state", "optimizer state", "MB", better="lower", digits=0, scale=1e-6, kind="memory")

Shapes = list[tuple[int, int]]
ZOO: Shapes = [(224, 224)] * 200
RESNET20: Shapes = [(16, 27), *[(16, 144)] * 6, (32, 144), *[(32, 288)] * 5, (64, 288), *[(64, 576)] * 5]
LARGE: Shapes = [(1291, 1291)] * 6
SHARES = {"schedule_free_adamw": 0.85, "lion": 0.7, "prodigy": 1.5, "ademamix": 1.5}
LOOP = "torch's AdamW"
TORCHS = "torch.optim.Muon"


def parameters(shapes: Shapes) -> list[nn.Parameter]:
    """Seeded parameters with gradients."""
    generator = torch.Generator().manual_seed(0)
    made = [nn.Parameter(torch.randn(*shape, generator=generator)) for shape in shapes]
    for parameter in made:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return made


def zoo(name: str) -> torch.optim.Optimizer:
    """An optimizer over ten million parameters. A gradient that never changes would let Prodigy's d grow without end."""
    limited = {"growth_rate": 1.0001} if name == "prodigy" else None
    return build(name, parameters(ZOO), options=limited)


def step_cost() -> None:
    """Whole steps of the zoo beside torch's loop over the tensors, and beside its fused step."""
    made = {LOOP: torch.optim.AdamW(parameters(ZOO), lr=1e-3), "fused AdamW": build("adamw", parameters(ZOO))}
    made["fused AdamW"].param_groups[0]["fused"] = True
    made |= {name: zoo(name) for name in (*SHARES, "schedule_free_sgd")}
    for each in made.values():
        each.step()
    states = {name: _state_bytes(each) for name, each in made.items()}
    runs = clocked({name: each.step for name, each in made.items()}, ROUNDS, repeats=2, warmup=2, state=states)
    count = sum(rows * columns for rows, columns in ZOO)
    title = f"Optimizer steps, {count / 1e6:.1f}M parameters in {len(ZOO)} tensors, 1 thread"
    report = Report(title, LOOP, runs, [SECONDS, WALL, STATE])
    publish(report, "optimizer_zoo", [Goal("cpu_seconds", name, 1 / share) for name, share in SHARES.items()])


def newton_schulz() -> None:
    """200 small matrices: torch's loop in bfloat16 beside one batch."""
    matrices = [p.grad for p in parameters([(32, 32)] * 200) if p.grad is not None]

    def torchs() -> list[torch.Tensor]:
        settings = ((_muon.DEFAULT_A, _muon.DEFAULT_B, _muon.DEFAULT_C), _muon.DEFAULT_NS_STEPS, _muon.EPS)
        return [_muon._zeropower_via_newtonschulz(matrix, *settings) for matrix in matrices]

    def ours() -> list[torch.Tensor]:
        return orthogonalize([matrix.unsqueeze(0) for matrix in matrices])

    gap = max(float((a - b[0]).abs().max()) for a, b in zip(torchs(), ours(), strict=True))
    runs = clocked({TORCHS: torchs, "muon": ours}, ROUNDS, repeats=5, warmup=2)
    note = f"Largest difference of an orthogonalized element: {gap:.1e}; both iterate in bfloat16 where the CPU has it."
    report = Report("Newton-Schulz, 200 matrices of 32x32, 1 thread", TORCHS, runs, [SECONDS, WALL], notes=[note])
    publish(report, "newton_schulz", [Goal("cpu_seconds", "muon", 12.0)])


def muon_step(label: str, name: str, shapes: Shapes, repeats: int) -> None:
    """Whole steps of Muon on matrices alone, which is what torch's takes."""
    theirs = torch.optim.Muon(parameters(shapes), lr=1e-3, adjust_lr_fn="match_rms_adamw")
    ours = build("muon", parameters(shapes), lr=1e-3, weight_decay=theirs.defaults["weight_decay"])
    runs = clocked({TORCHS: theirs.step, "muon": ours.step}, ROUNDS, repeats=repeats, warmup=2)
    left, right = (each.param_groups[0]["params"] for each in (theirs, ours))
    gap = max(float((a - b).detach().abs().max()) for a, b in zip(left, right, strict=True))
    note = f"Largest difference of a weight after {ROUNDS * repeats + 2} steps: {gap:.1e}."
    report = Report(f"Muon step, {label}, 1 thread", TORCHS, runs, [SECONDS, WALL], notes=[note])
    # "Never slower": no slowdown that the interval resolves.
    publish(report, name, [Goal("cpu_seconds", "muon", 1.0, bound="high")])


def _state_bytes(made: torch.optim.Optimizer) -> float:
    tensors = [value for state in made.state.values() for value in state.values() if torch.is_tensor(value)]
    return float(sum(tensor.numel() * tensor.element_size() for tensor in tensors))


def main() -> None:
    """Measure all of it and publish."""
    torch.set_num_threads(1)
    step_cost()
    newton_schulz()
    muon_step("matrices of ResNet-20", "muon_step_resnet20", RESNET20, 10)
    muon_step("10.0M parameters in 6 matrices", "muon_step_6_matrices", LARGE, 1)


if __name__ == "__main__":
    main()
