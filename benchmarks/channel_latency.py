"""How much of the products that ChannelPruning takes out a CPU gives back as time: MACs/2, eager fp32, batch 32.

    python -m benchmarks.channel_latency

R20 and R10w are those of benchmarks/runtimes.py, with weights as initialised: latency does not depend on them. Each goes
through a fit of one batch with ``ChannelPruning(0.5, at=0.0)``, R20 with the recipe's ``round_to=4``. The whole net, the cut
one and, for R20, a uniformly narrower ResNet-20 of at most as many products run in turn, one thread, wall time. Goals:
latency factor / MAC factor, of the cut net over the whole, at least 0.6 for R20 and 0.8 for R10w.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_perf as lp
from benchmarks.channel_accuracy import narrow
from benchmarks.goals import RESULTS, quiet_trainer
from benchmarks.pruning_runs import quiet
from benchmarks.runtimes import NETS, network
from lightning_perf import hardware, measuring
from lightning_perf.deploy.latency import measure

BATCH, ROUNDS, TARGET = 32, 41, 0.5
GOALS = {"R20": 0.6, "R10w": 0.8}
ROUND_TO = {"R20": 4, "R10w": 8}


class Classifier(pl.LightningModule):
    """A net with a loss, to be cut before its first step; the step changes nothing."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Cross entropy."""
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """A step of length zero."""
        return torch.optim.SGD(self.parameters(), lr=0.0)


def cut(name: str) -> nn.Module:
    """The net with half of its products."""
    net = network(name)[0]
    images = torch.randn(8, *NETS[name][1], generator=torch.Generator().manual_seed(1))
    loader = DataLoader(TensorDataset(images, torch.arange(8) % 10), batch_size=8)
    quiet_trainer([lp.ChannelPruning(TARGET, at=0.0, round_to=ROUND_TO[name])]).fit(Classifier(net), loader)
    return net.eval()


def measured(name: str, rounds: int) -> dict[str, Any]:
    """Products and seconds of each net, and the factors over the whole one."""
    x = torch.randn(BATCH, *NETS[name][1], generator=torch.Generator().manual_seed(9))
    nets = {"whole": network(name)[0], "cut": cut(name)}
    if name == "R20":
        nets["narrow"] = narrow(2).eval()
    macs = {label: lp.count_macs(net, x[:1]) for label, net in nets.items()}
    runs = {label: (lambda tensors, net=net: [net(*tensors)]) for label, net in nets.items()}
    again = measure({"a": runs["whole"], "b": runs["whole"]}, [x], rounds=rounds)
    seconds = measure(runs, [x], rounds=rounds)
    row: dict[str, Any] = {"name": name, "macs": macs, "samples": seconds, "goal": GOALS[name]}
    row["resolution"] = measuring.resolution(again["a"], again["b"]).reach()
    for label in list(nets)[1:]:
        ratio = measuring.paired_ratio(seconds["whole"], seconds[label])
        less = macs["whole"] / macs[label]
        row[label] = {
            "latency_factor": [ratio.estimate, ratio.low, ratio.high],
            "mac_factor": less,
            "share": ratio.estimate / less,
        }
    return row


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser("python -m benchmarks.channel_latency")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, default=RESULTS / "channel_latency.json", help="file to write")
    known = parser.parse_args()
    if known.rounds < ROUNDS and known.out == RESULTS / "channel_latency.json":
        parser.error(f"--rounds {known.rounds}: shortened runs are no results; name another --out.")
    quiet()
    torch.set_num_threads(1)
    with measuring.watch_contention() as watch:
        rows = [measured(name, known.rounds) for name in GOALS]
    for row in rows:
        for label in ("cut", "narrow"):
            if label in row:
                found, goal = row[label], row["goal"]
                estimate, low, high = found["latency_factor"]
                met = "met" if found["share"] >= goal else "NOT met"
                print(
                    f"{row['name']:5} {label:6} {estimate:.3f}x [{low:.3f}, {high:.3f}] faster with "
                    f"{found['mac_factor']:.3f}x fewer products: {found['share']:.3f}, resolution {row['resolution']:.3f}"
                    + (f"; goal >= {goal}: {met}" if label == "cut" else "")
                )
    print(watch.result.sentence())
    result = {
        "benchmark": "channel_latency",
        "goal": "latency factor / MAC factor >= 0.6 (R20), 0.8 (R10w)",
        "machine": hardware.machine(),
        "versions": hardware.versions(),
        "contention": watch.result.sentence(),
        "rows": rows,
    }
    known.out.parent.mkdir(parents=True, exist_ok=True)
    known.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
