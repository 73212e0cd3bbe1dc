"""Cost of a training step with QuantizationAwareTraining: the image recipe's ResNet-20 and the language model, vs float.

    python -m benchmarks.qat_step

Forward, backward and a fused AdamW step on one batch of the recipe, in the memory format of ``lossless.yaml`` on both sides,
one thread, interleaved in blocks in a random order. Ranges move at every step, as in the first 80 % of a run; with frozen
ranges a step costs less, which is the third variant. Goals: <= 1.75x and <= 1.5x of the float step, that is a ratio of
>= 0.571 and >= 0.667.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.goals import Goal, clocked, publish
from lightning_perf.quantization import prepare
from lightning_perf.report import Quantity, Report
from recipes.image_classification.networks import build
from recipes.language_model.networks import Decoder

ROUNDS = 15
SECONDS = Quantity("cpu_seconds", "training step, CPU time", "ms", better="lower", digits=1, scale=1e3, kind="other")
WALL = Quantity("wall_seconds", "training step, wall time", "ms", better="lower", digits=1, scale=1e3, kind="other")
Step = Callable[[], None]


def image_case() -> tuple[nn.Module, Tensor, Tensor]:
    """ResNet-20, channels-last, 128 images."""
    net = build("resnet20", 1, 10).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return net, torch.randn(128, 1, 28, 28), torch.randint(0, 10, (128,))


def language_case() -> tuple[nn.Module, Tensor, Tensor]:
    """The recipe's transformer, 32 blocks of 128 bytes."""
    net = Decoder(256, width=128, layers=4, heads=4, block_size=128, dropout=0.1)
    return net, torch.randint(0, 256, (32, 128)), torch.randint(0, 256, (32, 128))


def step_of(case: Callable[[], tuple[nn.Module, Tensor, Tensor]], quantized: bool, frozen: bool) -> Step:
    """One training step of a fresh, seeded net."""
    torch.manual_seed(0)
    net, inputs, targets = case()
    shared = prepare(net) if quantized else None
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=True)
    steps = 0

    def step() -> None:
        nonlocal steps
        if shared is not None:
            shared.observing = steps < 2 or not frozen
            shared.observing_outputs = shared.observing and steps % 8 == 0
        logits = net(inputs)
        loss = F.cross_entropy(logits.flatten(0, -2), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if shared is not None:
            shared.ranges.take_in()
        steps += 1

    return step


def measure(title: str, case: Callable[[], tuple[nn.Module, Tensor, Tensor]]) -> Report:
    """Interleaved rounds, one step of each variant in each."""
    variants = {
        "float": step_of(case, False, False),
        "QuantizationAwareTraining": step_of(case, True, False),
        "ranges frozen": step_of(case, True, True),
    }
    runs = clocked(variants, ROUNDS, warmup=3)
    return Report(title, "float", runs, [SECONDS, WALL])


def main() -> None:
    """Measure both nets and publish."""
    torch.set_num_threads(1)
    for name, title, case, largest in (
        ("image", "QAT step, ResNet-20, batch 128, channels-last, 1 thread", image_case, 1.75),
        ("language", "QAT step, transformer of the language recipe, 32 x 128 bytes, 1 thread", language_case, 1.5),
    ):
        publish(
            measure(title, case), f"qat_step_{name}", [Goal("cpu_seconds", "QuantizationAwareTraining", 1 / largest)]
        )


if __name__ == "__main__":
    main()
