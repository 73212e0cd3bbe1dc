"""Runs that may be stopped and continued: one result file each, for the benchmarks of channel pruning."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn

from lightning_perf.pruning.cut import reshape
from lightning_perf.report import Run, json_text

Fit = Callable[[str, int], tuple[Run, dict[str, Any]]]


class Folder:
    """Result files of one benchmark: a run and what else is to be known of it, by variant and seed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def file(self, variant: str, seed: int) -> Path:
        """The file of one run."""
        return self.path / f"{variant.replace(' ', '_')}_seed{seed}.json"

    def run_missing(self, variants: Sequence[str], seeds: int, fit: Fit, key: str) -> None:
        """Run what has no file, seed by seed in the order of ``variants``, and print the quantity ``key`` of each."""
        for seed in range(seeds):
            for name in variants:
                path = self.file(name, seed)
                if path.exists():
                    continue
                run, more = fit(name, seed)
                content = {"written": time.time(), "more": more, **dataclasses.asdict(run)}
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json_text.dumps(content), encoding="utf-8")
                print(
                    f"{name}, seed {seed}: {run.value(key):.4f}, MACs {run.value('macs'):,.0f}, "
                    f"{run.value('train_seconds'):.0f} s",
                    flush=True,
                )

    def more(self, variant: str, seed: int) -> dict[str, Any]:
        """What was kept beside the quantities of one run.

        Raises:
            FileNotFoundError: it has not been made.
        """
        return json_text.loads(self.file(variant, seed).read_text(encoding="utf-8"))["more"]

    def runs(self, variants: Sequence[str]) -> Iterator[Run]:
        """The runs that have a file."""
        for variant in variants:
            for path in sorted(self.path.glob(f"{variant.replace(' ', '_')}_seed*.json")):
                content = json_text.loads(path.read_text(encoding="utf-8"))
                del content["written"], content["more"]
                yield Run(**content)


def pairs(runs: Sequence[Run], one: str, other: str, key: str) -> tuple[list[float], list[float]]:
    """The quantity ``key`` of two variants, over the seeds that both have a run of."""
    found = {name: {run.seed: run.value(key) for run in runs if run.variant == name} for name in (one, other)}
    both = [(found[one][seed], found[other][seed]) for seed in sorted(found[one].keys() & found[other].keys())]
    known = [(ours, theirs) for ours, theirs in both if ours is not None and theirs is not None]
    return [ours for ours, _ in known], [theirs for _, theirs in known]


class Timed(pl.Callback):
    """Seconds of the training."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._start = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning's hook."""
        self._start = time.perf_counter()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning's hook."""
        self.seconds = time.perf_counter() - self._start


def shapes_in(trainer: pl.Trainer, pruning: pl.Callback, path: Path) -> dict[str, Any]:
    """The shapes that a fit with ChannelPruning has ended with, as its checkpoint holds them."""
    trainer.save_checkpoint(path)
    shapes = torch.load(path, weights_only=True)["callbacks"][pruning.state_key]["shapes"]
    path.unlink()
    return shapes


def of_shapes(module: nn.Module, shapes: Mapping[str, Any]) -> None:
    """Give a module the shapes of a pruned one, with weights drawn for them as a layer's class draws them."""
    reshape(module, shapes)
    for layer in module.modules():
        reset = getattr(layer, "reset_parameters", None)
        if callable(reset):
            reset()


def quiet() -> None:
    """Neither warnings nor Lightning's lines."""
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)


def command(
    name: str,
    usual: tuple[Path, int],
    variants: Sequence[str],
    key: str,
    fit: Callable[..., tuple[Run, dict[str, Any]]],
    table: Callable[[Folder], None],
    args: Sequence[str] | None,
) -> None:
    """Run what is missing, then print the table; ``usual`` are the folder and the number of seeds without options."""
    known = _arguments(name, *usual, args)
    quiet()
    folder = Folder(known.folder)
    if not known.table:
        folder.run_missing(variants, known.seeds, lambda one, seed: fit(one, seed, folder, **known.short), key)
    table(folder)


def _arguments(name: str, folder: Path, seeds: int, args: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(f"python -m benchmarks.{name}")
    parser.add_argument("--table", action="store_true", help="only print what there is")
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--batches", type=int, help="so many batches an epoch, for a look; needs --folder")
    parser.add_argument("--folder", type=Path, default=folder, help="where the result files are")
    known = parser.parse_args(args)
    if known.batches is not None and known.folder == folder:
        parser.error(f"--batches {known.batches}: shortened runs are no results; name another --folder.")
    known.short = {} if known.batches is None else {"limit_train_batches": known.batches}
    return known
