"""How ``OptimizerFactory("auto")`` was set: warm-up and averaging of schedule-free AdamW on five tasks of their own.

    python -m benchmarks.auto_default

The tasks are none of those of ``benchmarks.time_to_target``, which measures what was chosen here and frozen: a vision
transformer and a language model that start at a deviation of 0.02, a CNN with group norms, an MLP, a regression. In plain
loops, against the fastest of constant Adam at 3e-4, 1e-3, 3e-3: steps to the worst validation loss
at the end of the Adam that ends best, over the Adam's steps (2 where it is not reached). No goals: it chose the defaults.
"""

from __future__ import annotations

import functools
import statistics
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.averaged_weights import batches, images
from benchmarks.goals import publish
from lightning_perf.optim.averaging import EvaluationWeights
from lightning_perf.optim.param_groups import infer_groups
from lightning_perf.optim.schedule_free import ScheduleFreeAdamW
from lightning_perf.report import Quantity, Report, Run

EVERY, SEEDS, DECAY = 10, 2, 0.01
ADAM = (3e-4, 1e-3, 3e-3)
SETTINGS = {f"warm-up {warmup}, r={r:g}": {"warmup_steps": warmup, "r": r} for warmup in (15, 60) for r in (0.0, 1.0)}
Batches = Iterator[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Task:
    """A network, its loss, training batches by seed, one validation batch, and how long to train."""

    network: Callable[[], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    stream: Callable[[int], Batches]
    held_out: tuple[Tensor, Tensor]
    steps: int


def small_start(network: nn.Module) -> None:
    """Weights at a deviation of 0.02, as GPT-2 and the usual vision transformers begin."""
    for parameter in network.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.02)


class Vision(nn.Module):
    """Three pre-norm encoder layers over 49 patches."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, 2)
        self.position = nn.Parameter(torch.zeros(1, 49, width))
        self.body = _encoder(width, 3)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10))
        small_start(self)

    def forward(self, x: Tensor) -> Tensor:
        """Classes of images (B, 1, 14, 14)."""
        return self.head(self.body(self.patches(x).flatten(2).mT + self.position).mean(1))


class Language(nn.Module):
    """Two pre-norm layers over 32 characters; the head is the embedding, transposed."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.tokens = nn.Embedding(128, width)
        self.position = nn.Parameter(torch.zeros(1, 32, width))
        self.body = _encoder(width, 2)
        self.norm = nn.LayerNorm(width)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(32))
        small_start(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the next characters."""
        hidden = self.body(self.tokens(x) + self.position, mask=self.mask, is_causal=True)
        return self.norm(hidden) @ self.tokens.weight.mT


def _encoder(width: int, layers: int) -> nn.Module:
    layer = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.1, batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


def cnn() -> nn.Module:
    """Three convolutions, two group norms."""
    body: list[nn.Module] = []
    for inside, outside in ((1, 24), (24, 48)):
        body += [nn.Conv2d(inside, outside, 3, padding=1), nn.GroupNorm(4, outside), nn.ReLU(), nn.MaxPool2d(2)]
    body += [nn.Conv2d(48, 96, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10)]
    return nn.Sequential(*body)


def mlp(inputs: int, outputs: int, kind: type[nn.Module]) -> nn.Module:
    """Two hidden layers of 128."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(inputs, 128), kind(), nn.Linear(128, 128), kind(), nn.Linear(128, outputs)
    )


def text(seed: int, low: float, high: float, size: int) -> Batches:
    """Blocks of 32 characters of the standard library's source, from that part of it."""
    characters = _source()
    generator = torch.Generator().manual_seed(seed)
    first, last = int(low * len(characters)), int(high * len(characters)) - 33
    while True:
        starts = torch.randint(first, last, (size,), generator=generator)
        blocks = torch.stack([characters[start : start + 33] for start in starts])
        yield blocks[:, :-1], blocks[:, 1:]


@functools.cache
def _source() -> Tensor:
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:60]
    joined = "".join(file.read_text(encoding="utf-8", errors="ignore") for file in files)
    return torch.tensor([min(ord(character), 127) for character in joined])


def teacher() -> tuple[Tensor, Tensor]:
    """20,000 points of 20 numbers and what a random network makes of them, standardised."""
    torch.manual_seed(5)
    network = nn.Sequential(nn.Linear(20, 64), nn.Tanh(), nn.Linear(64, 1))
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5)
    x = torch.randn(20_000, 20)
    with torch.no_grad():
        y = network(x)
    return x, (y - y.mean()) / y.std()


def tasks() -> dict[str, Task]:
    """The five."""
    pictures = images()
    train, held_out = pictures["train"], (pictures["val"][0][:1000], pictures["val"][1][:1000])
    x, y = teacher()

    def entropy(logits: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten())

    def of_images(network: Callable[[], nn.Module], steps: int = 300) -> Task:
        return Task(network, entropy, lambda seed: batches(train, 64, seed), held_out, steps)

    return {
        "vision transformer": of_images(Vision),
        "language model": Task(
            Language, entropy, lambda seed: text(seed, 0.0, 0.9, 16), next(text(99, 0.9, 1.0, 48)), 200
        ),
        "CNN": of_images(cnn, 250),
        "MLP": of_images(lambda: mlp(196, 10, nn.Tanh)),
        "regression": Task(
            lambda: mlp(20, 1, nn.ReLU),
            nn.functional.mse_loss,
            lambda seed: batches((x[:18_000], y[:18_000]), 64, seed),
            (x[18_000:], y[18_000:]),
            300,
        ),
    }


def curve(task: Task, seed: int, make: Callable[[nn.Module], torch.optim.Optimizer]) -> list[float]:
    """Validation loss after every tenth step, at the weights that one would evaluate."""
    torch.manual_seed(seed)
    network = task.network()
    optimizer = make(network)
    stream, losses = task.stream(seed + 10), []
    for step in range(1, task.steps + 1):
        x, y = next(stream)
        optimizer.zero_grad()
        task.loss(network(x), y).backward()
        optimizer.step()
        if step % EVERY:
            continue
        network.eval()
        averages = optimizer.evaluation_weights if isinstance(optimizer, ScheduleFreeAdamW) else tuple
        with torch.no_grad(), EvaluationWeights(averages).in_place():
            losses.append(float(task.loss(network(task.held_out[0]), task.held_out[1])))
        network.train()
    return losses


def reached(losses: list[float], target: float) -> int | None:
    """Steps to the target."""
    return next((EVERY * (index + 1) for index, loss in enumerate(losses) if loss <= target), None)


def measure(name: str, task: Task) -> list[Run]:
    """One run of the report per setting and seed."""

    def adam(network: nn.Module, lr: float) -> torch.optim.Optimizer:
        return torch.optim.Adam(network.parameters(), lr=lr, fused=True)

    def ours(network: nn.Module, options: dict[str, Any]) -> torch.optim.Optimizer:
        return ScheduleFreeAdamW(infer_groups(network, weight_decay=DECAY), **options)

    seeds = range(SEEDS)
    theirs = {lr: [curve(task, seed, functools.partial(adam, lr=lr)) for seed in seeds] for lr in ADAM}
    best = min(theirs, key=lambda lr: statistics.fmean(losses[-1] for losses in theirs[lr]))
    target = max(losses[-1] for losses in theirs[best])
    steps = {lr: [reached(losses, target) or 2 * task.steps for losses in theirs[lr]] for lr in ADAM}
    fastest = min(steps, key=lambda lr: statistics.median(steps[lr]))
    runs = []
    for setting, options in SETTINGS.items():
        for seed in seeds:
            losses = curve(task, seed, functools.partial(ours, options=options))
            at = reached(losses, target)
            ratio = 2.0 if at is None else at / min(steps[fastest][seed], task.steps)
            runs.append(Run(setting, seed, quantities={quantity(name).key: ratio}))
        print(name, setting, [round(one.quantities[quantity(name).key] or 0, 2) for one in runs[-SEEDS:]], flush=True)
    return runs


def quantity(task: str) -> Quantity:
    """Steps to the target over those of Adam, on one task."""
    return Quantity(task.replace(" ", "_"), f"steps to the target, {task}", "x Adam's", "lower", 2, "difference")


def main() -> None:
    """Measure, print and write."""
    torch.set_num_threads(1)
    chosen = tasks()
    runs: dict[tuple[str, int], Run] = {}
    for name, task in chosen.items():
        for run in measure(name, task):
            before = runs.get((run.variant, run.seed))
            quantities = {**(before.quantities if before else {}), **run.quantities}
            runs[run.variant, run.seed] = Run(run.variant, run.seed, quantities=quantities)
    baseline = next(iter(SETTINGS))
    title = "steps to the target over those of the fastest constant Adam, 2 where it was not reached"
    report = Report(title, baseline, list(runs.values()), [quantity(name) for name in chosen])
    publish(report, "auto_default", [])


if __name__ == "__main__":
    main()
