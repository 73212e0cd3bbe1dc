"""How much of the products that ChannelPruning takes out a CPU gives back as time: MACs/2, eager fp32, batch 32.

    python -m benchmarks.channel_latency
    python -m benchmarks.channel_latency --nets channel_accuracy    # or channel_accuracy_6000: for the guide's picture

R20 and R10w are those of benchmarks/runtimes.py, with weights as initialised: latency does not depend on them. Each goes
through a fit of one batch with ``ChannelPruning(0.5, at=0.0)``, R20 with the recipe's ``round_to=4``. The whole net, the cut
one and, for R20, a uniformly narrower ResNet-20 of at most as many products run in turn, one thread, wall time. Goals:
latency factor / MAC factor, of the cut net over the whole, at least 0.6 for R20 and 0.8 for R10w. ``--nets`` measures in the
same way the shapes that the runs of benchmarks/channel_accuracy.py ended with, those of the first seed.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_perf as lp
from benchmarks.channel_accuracy import VARIANTS, narrow
from benchmarks.goals import RESULTS, quiet_trainer
from benchmarks.pruning_runs import quiet
from benchmarks.runtimes import NETS, network
from lightning_perf import hardware, measuring
from lightning_perf.deploy.latency import measure
from lightning_perf.report import json_text
from lightning_perf_recipes.image_classification.networks import PadShortcut, ResNet

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


def net_of(shapes: Mapping[str, Sequence[int]]) -> nn.Module:
    """A ResNet-20 whose tensors have these shapes, with the first of its initial values, in eval mode."""
    widths = [shapes[f"blocks.{block}.conv2.weight"][0] for block in (2, 5, 8)]  # of its stages' residual streams
    net = ResNet(widths, 3, PadShortcut, 1, 10)
    for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
        tensor.data = tensor.data[tuple(slice(size) for size in shapes[name])].clone()
    return net.eval()


def nets_measured(name: str, rounds: int) -> dict[str, Any]:
    """Seconds of a batch of each variant's net, in turn.

    Raises:
        FileNotFoundError: no run of the first seed.
    """
    folders = (name.replace("channel_", "pruning_"), name)  # where dense is, and the others
    paths = [path for one in folders for path in sorted((RESULTS / one).glob("*_seed0.json"))]
    kept = [json_text.loads(path.read_text(encoding="utf-8")) for path in paths]
    kept = [one for one in kept if one["variant"] in VARIANTS]
    if not kept:
        raise FileNotFoundError(
            f"{RESULTS / name} holds no run of the first seed: run benchmarks.channel_accuracy first."
        )
    x = torch.randn(BATCH, 1, 28, 28, generator=torch.Generator().manual_seed(9))
    runs = {}
    for one in kept:
        net = net_of(one["more"]["net"])
        assert lp.count_macs(net, x[:1]) == one["quantities"]["macs"], one["variant"]
        runs[one["variant"]] = lambda tensors, net=net: [net(*tensors)]
    return {"seconds": measure(runs, [x], rounds=rounds)}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser("python -m benchmarks.channel_latency")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, help="file to write")
    parser.add_argument(
        "--nets", metavar="NAME", help="of a folder in benchmarks/results: measure the nets of its runs"
    )
    known = parser.parse_args()
    name = "channel_latency" if known.nets is None else f"channel_latency_of_{known.nets}"
    if known.rounds < ROUNDS and known.out is None:
        parser.error(f"--rounds {known.rounds}: shortened runs are no results; name another --out.")
    quiet()
    torch.set_num_threads(1)
    with measuring.watch_contention() as watch:
        rows = [measured(one, known.rounds) for one in GOALS] if known.nets is None else []
        more = {} if known.nets is None else nets_measured(known.nets, known.rounds)
    for variant, seconds in more.get("seconds", {}).items():
        print(f"{variant:16} {1e3 * statistics.median(seconds):.2f} ms")
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
        "benchmark": name,
        "goal": "none set" if known.nets else "latency factor / MAC factor >= 0.6 (R20), 0.8 (R10w)",
        "machine": hardware.machine(),
        "versions": hardware.versions(),
        "contention": watch.result.sentence(),
        **(more or {"rows": rows}),
    }
    out = known.out or RESULTS / f"{name}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
