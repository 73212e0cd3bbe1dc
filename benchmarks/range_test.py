"""How near a range test's suggestion comes to the best learning rate, for our rule and for others.

    python -m benchmarks.range_test

Five pairs of network and batch size (4 to 64) with AdamW and with SGD, 200 steps of Fashion-MNIST at 14x14, three seeds of
the test: validation loss at the suggestion (between two points of the grid, by linear interpolation in the logarithm of
the rate) minus the best of a grid of half decades; with a schedule that ends at zero, and with a constant rate. No
goals: it chose the rule.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.averaged_weights import batches, cnn, images, score
from benchmarks.goals import publish
from lightning_perf.optim.range_test import growing_rates, has_diverged, smoothed, suggest
from lightning_perf.report import Quantity, Report, Run

STEPS, SEEDS = 200, 3
GRID = [10.0 ** (exponent / 2) for exponent in range(-7, 2)]
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "sgd": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=5e-4),
}
EXCESS = [
    Quantity(f"excess_{kind}", f"loss above the best, {words}", "", "lower", 3, "difference", kind="quality")
    for kind, words in (("decay", "linear to zero"), ("constant", "constant rate"))
]


def mlp() -> nn.Module:
    """Two hidden layers with tanh."""
    hidden = [nn.Linear(196, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh()]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(128, 10))


class Transformer(nn.Module):
    """One encoder layer over the 14 rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(14, 32)
        self.position = nn.Parameter(torch.randn(1, 14, 32) * 0.02)
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, 0.1, batch_first=True)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Classes of a batch of images."""
        return self.head(self.layer(self.embed(x[:, 0]) + self.position).mean(1))


def curve(network: nn.Module, name: str, size: int, seed: int, data: dict) -> tuple[list[float], list[float]]:
    """Rates and losses of one range test."""
    network = copy.deepcopy(network)
    optimizer = OPTIMIZERS[name](network.parameters(), lr=1e-6)
    stream, rates, losses = batches(data["train"], size, seed), [], []
    for rate in growing_rates():
        optimizer.param_groups[0]["lr"] = rate
        x, y = next(stream)
        loss = nn.functional.cross_entropy(network(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.append(rate)
        losses.append(loss.item())
        if has_diverged(losses):
            break
    return rates, losses


def trained(network: nn.Module, name: str, size: int, lr: float, *, constant: bool, data: dict) -> float:
    """Validation loss after training at ``lr``, at most 3."""
    torch.manual_seed(1)
    network = copy.deepcopy(network)
    optimizer = OPTIMIZERS[name](network.parameters(), lr=lr)
    stream = batches(data["train"], size, 5)
    for step in range(STEPS):
        factor = 1.0 if constant else min(1.0, (step + 1) / 12) * (1 - step / STEPS)
        optimizer.param_groups[0]["lr"] = lr * factor
        x, y = next(stream)
        loss = nn.functional.cross_entropy(network(x), y)
        if not math.isfinite(loss.item()):
            return 3.0
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    final = score(network, data["val"])["loss"]
    return min(3.0, final) if final is not None and math.isfinite(final) else 3.0


def rules(rates: list[float], losses: list[float]) -> dict[str, float]:
    """What each rule reads from a curve."""
    finite = [loss for loss in losses if math.isfinite(loss)]
    smooth = smoothed(finite)
    lowest = min(range(len(smooth)), key=smooth.__getitem__)
    highest = max(range(lowest + 1), key=smooth.__getitem__)
    slopes = [smooth[i + 1] - smooth[i] for i in range(highest, lowest)] or [0.0]
    target = smooth[highest] - 0.75 * (smooth[highest] - smooth[lowest])
    return {
        "a quarter of the lowest": suggest(rates, losses) or 1e-3,
        "a third of the lowest": rates[lowest] / 3,
        "a tenth of the lowest": rates[lowest] / 10,
        "steepest slope": rates[highest + min(range(len(slopes)), key=slopes.__getitem__)],
        "three quarters of the fall": next(rates[i] for i in range(highest, lowest + 1) if smooth[i] <= target),
    }


def at(rate: float, losses: list[float]) -> float:
    """The loss at ``rate``, between two points of the grid."""
    place = min(max(2 * math.log10(rate) + 7, 0.0), len(GRID) - 1.0)
    left = min(int(place), len(GRID) - 2)
    return losses[left] + (place - left) * (losses[left + 1] - losses[left])


def main() -> None:
    """All pairs, one report."""
    torch.set_num_threads(1)
    data, runs, case = images(), [], 0
    for make, size in ((cnn, 64), (cnn, 8), (mlp, 32), (mlp, 4), (Transformer, 16)):
        for name in OPTIMIZERS:
            torch.manual_seed(0)
            network = make()
            grids = {
                key: [trained(network, name, size, lr, constant=key == "excess_constant", data=data) for lr in GRID]
                for key in ("excess_decay", "excess_constant")
            }
            for seed in range(SEEDS):
                for rule, rate in rules(*curve(network, name, size, seed, data)).items():
                    quantities = {key: at(rate, losses) - min(losses) for key, losses in grids.items()}
                    runs.append(Run(rule, case, quantities=quantities, samples={"rate": (rate,)}))
                case += 1
    publish(Report("range test: loss above that at the best rate", "steepest slope", runs, EXCESS), "range_test", [])


if __name__ == "__main__":
    main()
