"""What ThroughputProfiler expects of a lever, and what the lever then gives: over the recipes and Lightning's demos.

    python -m benchmarks.advice

Each case is profiled as it is. Every lever of ours that the profile advises is then switched on alone, in paired and
interleaved fits, and the expected gain is set beside the real one. Published: every pair, and the median error.
"""

from __future__ import annotations

import functools
import json
import logging
import re
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import lightning_perf as lp
from benchmarks import demos, small_step
from benchmarks.goals import RESULTS, quiet_trainer
from lightning_perf import hardware
from lightning_perf_recipes.image_classification.data import FashionMNISTData
from lightning_perf_recipes.image_classification.module import ImageClassifier
from lightning_perf_recipes.language_model.data import TextData
from lightning_perf_recipes.language_model.module import LanguageModel

PAIRS = 4
Make = Callable[[list[Any]], tuple[Any, ...]]


def image_recipe(callbacks: list[Any]) -> tuple[Any, ...]:
    """ResNet-20 on batches of 128, thirty steps."""
    trainer = quiet_trainer(callbacks, limit_train_batches=30, limit_val_batches=0)
    return trainer, ImageClassifier(), FashionMNISTData(batch_size=128, eval_batch_size=512)


def language_model(callbacks: list[Any]) -> tuple[Any, ...]:
    """The byte-level transformer, thirty steps."""
    trainer = quiet_trainer(callbacks, limit_train_batches=30, limit_val_batches=0)
    return trainer, LanguageModel(), TextData()


def small_mlp(callbacks: list[Any]) -> tuple[Any, ...]:
    """The MLP of benchmarks.small_step."""
    return small_step.variant(callbacks)


def cases() -> dict[str, Make]:
    """What is profiled: name and a function of the callbacks."""
    return {
        "image recipe": image_recipe,
        "language model": language_model,
        "small MLP": small_mlp,
        "demo transformer": functools.partial(demos.variant, demos.transformer),
        "demo LSTM": functools.partial(demos.variant, demos.lstm),
    }


def measure_case(name: str, make: Make) -> list[dict[str, Any]]:
    """Profile, then try what is advised."""
    profiler = lp.ThroughputProfiler()
    trainer, module, data = make([profiler])
    torch.manual_seed(0)
    trainer.fit(module, data)
    found = []
    for advice in profiler.report.advice:
        lever = re.search(r"lightning_perf\.(\w+)\(\)", advice.lever)
        row: dict[str, Any] = {"case": name, "advice": advice.sentence(), "expected": advice.expected}
        if lever is None:
            found.append(
                {**row, "real": None, "why": "not a lever of ours: it needs a change of the user's own settings"}
            )
            continue
        callback = getattr(lp, lever[1])
        report = lp.compare(
            {"plain": lambda: make([]), "lever": lambda callback=callback: make([callback()])}, pairs=PAIRS, title=name
        )
        ratio = report.ratio("samples_per_second", "lever")
        assert ratio is not None
        found.append({**row, "real": ratio.estimate, "interval": [ratio.low, ratio.high]})
    return found


def main() -> None:
    """Measure every case and publish."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    rows = [row for name, make in cases().items() for row in measure_case(name, make)]
    errors = [abs(row["expected"] / row["real"] - 1) for row in rows if row["real"] is not None]
    for row in rows:
        real = "not tried" if row["real"] is None else f"{row['real']:.2f}x {row['interval']}"
        print(f"{row['case']}: {row['advice']}; real {real}")
    print(f"median error of the expectation: {statistics.median(errors):.1%} over {len(errors)} levers")
    path: Path = RESULTS / "advice.json"
    result = {
        "benchmark": "advice",
        "machine": hardware.machine(),
        "versions": hardware.versions(),
        "median_error": statistics.median(errors),
        "rows": rows,
    }
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
