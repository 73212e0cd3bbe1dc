"""Runs that may be stopped, continued and shared among processes: one result file each, for the benchmarks of pruning."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import os
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn

from lightning_perf.pruning.shapes import reshape
from lightning_perf.report import Run, json_text

Fit = Callable[[str, int], tuple[Run, dict[str, Any]]]


class Folder:
    """Result files of one benchmark: a run and what else is to be known of it, by variant and seed.

    Args:
        path: the folder.
        images: how many training images a run sees; None for all. Files of other runs are refused.
        shared: folders of variants whose files another benchmark reads as well.
    """

    def __init__(self, path: Path, images: int | None = None, shared: Mapping[str, Path] | None = None) -> None:
        self.path, self.images, self.shared = path, images, dict(shared or {})

    def file(self, variant: str, seed: int) -> Path:
        """The file of one run."""
        return self._of(variant) / f"{variant.replace(' ', '_')}_seed{seed}.json"

    def _of(self, variant: str) -> Path:
        return self.shared.get(variant, self.path)

    def run_missing(
        self, variants: Sequence[str], seeds: int, fit: Fit, after: Mapping[str, str] | None = None
    ) -> None:
        """Run what has no file, seed by seed in the order of ``variants``, and print the quantities of each.

        Several processes may do so in one folder: each run is one process's. A variant in ``after`` waits for the file of
        another; where that is in another process's hands, so is what waits for it.
        """
        order = [(name, seed) for seed in range(seeds) for name in variants]
        while any(self._run(name, seed, fit, (after or {}).get(name)) for name, seed in order):
            pass
        open_ones = [f"{name} seed {seed}" for name, seed in order if not self.file(name, seed).exists()]
        if open_ones:
            print(f"left to another process, or waiting for what it runs: {', '.join(open_ones)}", flush=True)

    def _run(self, name: str, seed: int, fit: Fit, needs: str | None) -> bool:
        """Whether this run was made here and now."""
        path = self.file(name, seed)
        if path.exists() or (needs is not None and not self.file(needs, seed).exists()):
            return False
        with claimed(path) as mine:
            if not mine:
                return False
            run, more = fit(name, seed)
            content = {"written": time.time(), "images": self.images, "more": more, **dataclasses.asdict(run)}
            part = path.with_suffix(".part")
            part.write_text(json_text.dumps(content), encoding="utf-8")
            part.replace(path)  # nobody reads half a file
        numbers = ", ".join(f"{key} {value:.6g}" for key, value in run.quantities.items() if value is not None)
        print(f"{name}, seed {seed}: {numbers}", flush=True)
        return True

    def more(self, variant: str, seed: int) -> dict[str, Any]:
        """What was kept beside the quantities of one run.

        Raises:
            FileNotFoundError: it has not been made.
        """
        return self._content(self.file(variant, seed))["more"]

    def runs(self, variants: Sequence[str]) -> Iterator[Run]:
        """The runs that have a file."""
        for variant in variants:
            for path in sorted(self._of(variant).glob(f"{variant.replace(' ', '_')}_seed*.json")):
                content = self._content(path)
                del content["written"], content["more"]
                content.pop("images", None)
                yield Run(**content)

    def _content(self, path: Path) -> dict[str, Any]:
        content = json_text.loads(path.read_text(encoding="utf-8"))
        if content.get("images") != self.images:
            raise ValueError(
                f"{path} is of a run on {_images(content.get('images'))} and not on {_images(self.images)}: a folder holds "
                "runs of one protocol; name the same --images as for its runs, or another --folder."
            )
        return content


def _images(count: int | None) -> str:
    return "all training images" if count is None else f"{count} training images"


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Whether the run of this file is for this process to make, and no other's until the end of the block.

    The claim is a lock on ``PATH.running``, which the system takes back from a process that has died; the file holds the
    process id for whoever looks.
    """
    import fcntl  # not on Windows, where the library runs and the benchmarks do not

    path.parent.mkdir(parents=True, exist_ok=True)
    note = path.with_suffix(".running")
    with note.open("a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        if path.exists():  # made since the caller looked; the note may be one that its owner has already removed
            note.unlink(missing_ok=True)
            yield False
            return
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield True
        note.unlink()  # after a failure it stays: another process may hold the same file open, and lock it next


def pairs(runs: Sequence[Run], one: str, other: str, key: str) -> tuple[list[float], list[float]]:
    """The quantity ``key`` of two variants, over the seeds that both have a run of."""
    found = {name: {run.seed: run.value(key) for run in runs if run.variant == name} for name in (one, other)}
    both = [(found[one][seed], found[other][seed]) for seed in sorted(found[one].keys() & found[other].keys())]
    known = [(ours, theirs) for ours, theirs in both if ours is not None and theirs is not None]
    return [ours for ours, _ in known], [theirs for _, theirs in known]


class Timed(pl.Callback):
    """Seconds of the training, and which batches it saw: how many, and a checksum of their targets in their order."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.batches, self.order = 0, 0
        self._start = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning's hook."""
        self._start = time.perf_counter()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Lightning's hook."""
        self.batches += 1
        self.order = zlib.crc32(batch[1].numpy().tobytes(), self.order)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning's hook."""
        self.seconds = time.perf_counter() - self._start


def shapes_in(trainer: pl.Trainer, pruning: pl.Callback) -> dict[str, Any]:
    """The shapes that a fit with ChannelPruning has ended with, as its checkpoint holds them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shapes.ckpt"
        trainer.save_checkpoint(path)
        return torch.load(path, weights_only=True)["callbacks"][pruning.state_key]["shapes"]


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
    usual: Callable[[int | None], Folder],
    variants: Sequence[str],
    fit: Callable[..., tuple[Run, dict[str, Any]]],
    table: Callable[[Folder], None],
    args: Sequence[str] | None,
    *,
    seeds: int,
    after: Mapping[str, str] | None = None,
    fewer: bool = False,
) -> None:
    """Run what is missing, then print the table.

    ``usual`` gives the folder without ``--folder``, by the number of images; ``fewer`` offers ``--images``; ``after`` names
    the variant whose file another one needs.
    """
    parser = argparse.ArgumentParser(f"python -m benchmarks.{name}")
    parser.add_argument("--table", action="store_true", help="only print what there is")
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--only", nargs="+", choices=variants, metavar="VARIANT", help="run only these")
    parser.add_argument("--batches", type=int, help="so many batches an epoch, for a look; needs --folder")
    parser.add_argument("--folder", type=Path, help="where the result files are")
    if fewer:
        parser.add_argument("--images", type=int, help="train on so many images; has its own folder and report")
    known = parser.parse_args(args)
    if known.batches is not None and known.folder is None:
        parser.error(f"--batches {known.batches}: shortened runs are no results; name another --folder.")
    images = getattr(known, "images", None)
    folder = usual(images) if known.folder is None else Folder(known.folder, images)
    short = {} if known.batches is None else {"limit_train_batches": known.batches}
    quiet()
    if not known.table:
        folder.run_missing(
            known.only or variants, known.seeds, lambda one, seed: fit(one, seed, folder, **short), after
        )
    table(folder)
