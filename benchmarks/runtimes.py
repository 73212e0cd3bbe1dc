"""Every runtime and precision of ``lp.export``, and the peers' own quantizers, on the same float weights.

    python -m benchmarks.runtimes            # every net, 1 and 2 threads
    python -m benchmarks.runtimes R20 1      # one net, one thread

Nets are fixed so that nobody can flatter a ratio: R20 is ResNet-20 of He et al. (16-32-64, 28x28, the image recipe); R10w is
4 basic blocks of widths 64 to 512 on 64x64 behind a strided stem with pooling (4.9M); T3 is 3 pre-norm transformer blocks,
d 256, 64 tokens. Weights are as initialised (batch norms have seen data): latency does not depend on them, and accuracy is
measured elsewhere. Everything is calibrated on the same 32 samples. Peers: ONNX Runtime's static quantizer (per channel) and
its dynamic one, NNCF in OpenVINO, pt2e with Inductor (torchao). One process, interleaved rounds, wall time.

Goals, int8 vs eager fp32 at batch 1 / 32, one thread: R20 >= 8 / 4, R10w >= 16 / 5.2, T3 >= 3.4 / 3.2; the best of ours at
least as fast as the best peer whose outputs are right (relative error below 0.1); int8 files of ONNX Runtime and OpenVINO at
most 0.27x of fp32 for nets above 1 MB.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lightning_perf as lp
from benchmarks.goals import RESULTS
from benchmarks.runtimes_peers import PEERS
from lightning_perf import hardware, measuring
from lightning_perf.deploy.gate import relative_error
from lightning_perf.deploy.latency import Target, measure
from lightning_perf.report import Quantity, Report, Run
from recipes.image_classification.networks import build

ROUNDS = 11
SAMPLES = 32
EAGER, CHANNELS_LAST = "eager fp32", "eager channels_last"
GOALS = {"R20": (8.0, 4.0), "R10w": (16.0, 5.2), "T3": (3.4, 3.2)}
RIGHT = 0.1
SIZE = Quantity("file_bytes", "file size", "MB", better="lower", digits=2, scale=1e-6, kind="memory")
ERROR = Quantity(
    "error", "relative error of the output", "", better="lower", digits=4, compare="difference", kind="quality"
)


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut with a 1x1 convolution where the shape changes."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after)
        self.conv2, self.norm2 = nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        """Shapes as a basic block of a residual network."""
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class R10w(nn.Module):
    """Four basic blocks, widths 64 to 512, on (B, 3, 64, 64)."""

    def __init__(self) -> None:
        super().__init__()
        stem = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.stem = nn.Sequential(stem, nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        widths = ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2))
        self.blocks = nn.Sequential(*(Block(*shape) for shape in widths))
        self.head = nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Layer(nn.Module):
    """A pre-norm transformer block with a fused projection."""

    def __init__(self, width: int = 256, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm2, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width) to the same."""
        batch, length, width = x.shape
        shape = (batch, length, 3, self.heads, width // self.heads)
        q, k, v = self.qkv(self.norm1(x)).view(shape).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(y.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class T3(nn.Module):
    """Three blocks on 64 tokens of 64 features, with a learned position."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.position = nn.Linear(64, 256), nn.Parameter(torch.randn(1, 64, 256) * 0.02)
        self.blocks, self.norm, self.head = (
            nn.Sequential(*(Layer() for _ in range(3))),
            nn.LayerNorm(256),
            nn.Linear(256, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits of (B, 64, 64)."""
        return self.head(self.norm(self.blocks(self.inner(x) + self.position)).mean(1))


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "R20": (lambda: build("resnet20", 1, 10), (1, 28, 28)),
    "R10w": (R10w, (3, 64, 64)),
    "T3": (T3, (64, 64)),
}


def network(name: str) -> tuple[nn.Module, Tensor]:
    """A seeded net whose batch norms have seen data, and the calibration samples."""
    make, shape = NETS[name]
    torch.manual_seed(0)
    module = make()
    with torch.no_grad():
        for _ in range(10):
            module(torch.randn(8, *shape))
    return module.eval(), torch.randn(SAMPLES, *shape)


def measured(name: str, threads: int, folder: Path) -> Report:
    """Build everything for one net and time it on so many threads."""
    module, samples = network(name)
    artifact = lp.export(module, samples, folder / f"{name}.lpx", rounds=0)
    runs: dict[str, Callable[[Sequence[Tensor]], Any]] = {EAGER: lambda tensors: [module(*tensors)]}
    sizes: dict[str, float] = {EAGER: float(sum(4 * p.numel() for p in module.parameters()))}
    if len(NETS[name][1]) == 3:
        wide: Any = network(name)[0]
        wide.to(memory_format=torch.channels_last)
        runs[CHANNELS_LAST] = lambda tensors: [wide(tensors[0].to(memory_format=torch.channels_last))]
        sizes[CHANNELS_LAST] = sizes[EAGER]
    left = dict(artifact.manifest["left_out"])
    for variant, entry in artifact.manifest["variants"].items():
        if entry["passed"]:
            model = lp.load_artifact(artifact.path, variant, threads=threads)
            runs[f"ours {variant}"] = lambda tensors, model=model: [model(*tensors)]
            sizes[f"ours {variant}"] = float(entry["bytes"])
        else:
            left[variant] = entry["reason"]
    for label, make in PEERS.items():
        try:
            runs[f"peer {label}"], sizes[f"peer {label}"] = make(network(name)[0], samples, folder / label, threads)
        except Exception as error:  # a peer that cannot take the net is part of the result
            left[f"peer {label}"] = f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"
    return timed(name, threads, samples, runs, sizes, left)


def timed(
    name: str,
    threads: int,
    samples: Tensor,
    runs: dict[str, Callable[[Sequence[Tensor]], Any]],
    sizes: dict[str, float],
    left: dict[str, str],
) -> Report:
    """Interleaved rounds at batch 1 and 32, the error of every variant beside them."""
    targets = [Target(batch, threads) for batch in (1, SAMPLES)]
    fresh = torch.randn(SAMPLES, *samples.shape[1:], generator=torch.Generator().manual_seed(9))
    with hardware.torch_threads(threads), torch.inference_mode():
        wanted = runs[EAGER]([fresh])[0].clone()
        errors = {
            label: relative_error(torch.as_tensor(np.asarray(run([fresh])[0])), wanted) for label, run in runs.items()
        }
        with measuring.watch_contention() as watch:
            seconds = {target.key: measure(runs, [fresh[: target.batch]], rounds=ROUNDS) for target in targets}
    samples_of = [
        Run(
            label,
            index,
            quantities={
                **{key: found[label][index] for key, found in seconds.items()},
                "file_bytes": sizes[label],
                "error": errors[label],
            },
        )
        for index in range(ROUNDS)
        for label in runs
    ]
    rows = [Quantity(t.key, t.label, "ms", better="lower", digits=3, scale=1e3, kind="speed") for t in targets]
    report = Report(
        f"{name}, {threads} thread{'s' * (threads != 1)}: runtimes and quantizers",
        EAGER,
        [dataclasses.replace(run, position=index) for index, run in enumerate(samples_of)],
        [*rows, SIZE, ERROR],
        notes=[*(f"{label} is not there: {reason}." for label, reason in left.items()), watch.result.sentence()],
    )
    return dataclasses.replace(report, notes=[*report.notes, *verdicts(report, name, threads)])


def verdicts(report: Report, name: str, threads: int) -> list[str]:
    """The goals of this net, judged."""
    found = []
    error = {label: median(v for v in report.values("error", label) if v is not None) for label in report.variants}
    for batch, goal in zip((1, SAMPLES), GOALS[name], strict=True):
        key = Target(batch, threads).key
        ours = fastest(report, key, [v for v in report.variants if v.startswith("ours") and "int8" in v])
        floats = [v for v in report.variants if v.startswith("ours") and "fp32" in v]
        peers = [v for v in report.variants if v.startswith("peer") and "int8" in v and error[v] <= RIGHT]
        ratio = report.ratio(key, ours)
        assert ratio is not None
        met = "met" if ratio.estimate >= goal else "NOT met"
        limit = f"goal >= {goal:g}x: {met}" if threads == 1 else "no goal set"
        found.append(f"Batch {batch}: {ours} is {ratio} of eager fp32; {limit}.")
        best_float = fastest(report, key, floats)
        found.append(f"Batch {batch}: that is {speed_ratio(report, key, ours, best_float):.2f}x of {best_float}.")
        if peers:
            best_peer = fastest(report, key, peers)
            gain = speed_ratio(report, key, ours, best_peer)
            met = "met" if gain >= 1 else "NOT met"
            found.append(f"Batch {batch}: {gain:.3f}x of {best_peer}, the best peer that is right; goal >= 1x: {met}.")
    for runtime in ("onnxruntime", "openvino"):
        small, large = (report.values("file_bytes", f"ours {runtime}-{p}")[0] for p in ("int8", "fp32"))
        assert small is not None
        assert large is not None
        limit = (
            "net below 1 MB" if large < 1.25e6 else f"goal <= 0.27x: {'met' if small <= 0.27 * large else 'NOT met'}"
        )
        found.append(f"{runtime}: the int8 file is {small / large:.3f}x of fp32; {limit}.")
    return found


def fastest(report: Report, key: str, labels: Sequence[str]) -> str:
    """The variant with the smallest median."""
    return min(labels, key=lambda label: median(v for v in report.values(key, label) if v is not None))


def speed_ratio(report: Report, key: str, mine: str, other: str) -> float:
    """Median over rounds of the other's seconds by mine."""
    pairs = zip(report.values(key, other), report.values(key, mine), strict=True)
    return median(b / a for b, a in pairs if a is not None and b is not None)


def main(args: Sequence[str]) -> None:
    """Measure and write ``results/runtimes_NET_tN.json``."""
    warnings.filterwarnings("ignore")
    for name in ("nncf", "lightning.pytorch", "torch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    names = [args[0]] if args else list(NETS)
    counts = [int(args[1])] if len(args) > 1 else [1, 2]
    for name in names:
        for threads in counts:
            with tempfile.TemporaryDirectory() as folder, hardware.torch_threads(threads):
                report = measured(name, threads, Path(folder))
            print(report.table())
            report.to_json(RESULTS / f"runtimes_{name}_t{threads}.json")


if __name__ == "__main__":
    main(sys.argv[1:])
