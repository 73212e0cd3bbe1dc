"""Validation loss of the weights in training, of averaged ones, and of averaged ones with recalibrated batch norms.

    python -m benchmarks.averaged_weights

Fashion-MNIST at 14x14, batch 64, 300 steps, loss on the 5,000 held-out images, 4 seeds; a CNN with 2 batch norms and a
ResNet with 9, each under schedule-free AdamW and under AdamW with ``ema=0.999``. No goals: it decides what the guide says.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.goals import publish
from lightning_perf.optim.averaging import Ema, EvaluationWeights
from lightning_perf.optim.batch_norm import forget_statistics
from lightning_perf.optim.schedule_free import ScheduleFreeAdamW
from lightning_perf.report import Quantity, Report, Run
from lightning_perf_recipes.image_classification.data import FashionMNISTData

STEPS, BATCH, SEEDS, RECALIBRATE = 300, 64, 4, 20
LOSS = Quantity("loss", "validation loss", "", better="lower", digits=3, compare="difference", kind="quality")
ACCURACY = Quantity(
    "accuracy", "accuracy", "%", better="higher", digits=1, compare="difference", scale=100, kind="quality"
)


class Block(nn.Module):
    """Two convolutions with batch norms around a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        one, two = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.body = nn.Sequential(one, nn.BatchNorm2d(channels), nn.ReLU(), two, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """``relu(x + body(x))``."""
        return torch.relu(x + self.body(x))


def cnn() -> nn.Module:
    """Two strided convolutions, two batch norms, two linear layers."""
    body = [nn.Conv2d(1, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU()]
    body += [nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU()]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10))


def resnet() -> nn.Module:
    """A strided convolution and four blocks: nine batch norms."""
    stem = [nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(
        *stem, *(Block(16) for _ in range(4)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)
    )


def images() -> dict[str, tuple[Tensor, Tensor]]:
    """Training and held-out images at half the size, as tensors."""
    data = FashionMNISTData(train_limit=18000)
    data.prepare_data()
    data.setup("fit")
    parts = {}
    for name, loader in (("train", data.train_dataloader()), ("val", data.val_dataloader())):
        torch.manual_seed(0)
        batches = list(loader)
        x = nn.functional.avg_pool2d(torch.cat([x for x, _ in batches]), 2)
        parts[name] = x, torch.cat([y for _, y in batches])
    return parts


def batches(data: tuple[Tensor, Tensor], size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled batches without end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for index in torch.randperm(len(data[0]), generator=generator).split(size):
            yield data[0][index], data[1][index]


@torch.no_grad()
def score(network: nn.Module, data: tuple[Tensor, Tensor]) -> dict[str, float | None]:
    """Loss and accuracy in evaluation mode."""
    network.eval()
    logits = network(data[0])
    network.train()
    accuracy = (logits.argmax(1) == data[1]).float().mean()
    return {"loss": float(nn.functional.cross_entropy(logits, data[1])), "accuracy": float(accuracy)}


@torch.no_grad()
def recalibrated(network: nn.Module, data: tuple[Tensor, Tensor]) -> nn.Module:
    """A copy whose running statistics are those of its present weights."""
    clone = copy.deepcopy(network)
    forget_statistics(clone)
    stream = batches(data, BATCH, 77)
    for _ in range(RECALIBRATE):
        clone(next(stream)[0])
    return clone


def train(make: Callable[[], nn.Module], lr: float, ema: float | None, seed: int, data: dict) -> list[Run]:
    """One run, scored three times at its end."""
    torch.manual_seed(seed)
    network = make()
    optimizer: torch.optim.Optimizer
    if ema is None:
        optimizer = averages = ScheduleFreeAdamW(network.parameters(), lr=lr, warmup_steps=STEPS // 20)
    else:
        optimizer, averages = torch.optim.AdamW(network.parameters(), lr=lr), Ema(ema)
        averages.follow(optimizer)
    stream = batches(data["train"], BATCH, seed)
    for _ in range(STEPS):
        x, y = next(stream)
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    scores = {"in training": score(network, data["val"])}
    with EvaluationWeights(averages.evaluation_weights).in_place():
        scores["averaged"] = score(network, data["val"])
        scores["averaged, recalibrated"] = score(recalibrated(network, data["train"]), data["val"])
    return [Run(name, seed, quantities=quantities) for name, quantities in scores.items()]


def main() -> None:
    """All four combinations, each a report."""
    torch.set_num_threads(1)
    data = images()
    for make in (cnn, resnet):
        for label, lr, ema in (("schedule_free", 0.005, None), ("ema", 0.01, 0.999)):
            runs = [run for seed in range(SEEDS) for run in train(make, lr, ema, seed, data)]
            optimizer = "schedule-free AdamW" if ema is None else f"AdamW, ema={ema}"
            title = f"{make.__name__}, {optimizer}, lr {lr}, {STEPS} steps"
            publish(Report(title, "in training", runs, [LOSS, ACCURACY]), f"averaged_{make.__name__}_{label}", [])


if __name__ == "__main__":
    main()
