"""One run of a recipe in a process of its own: the fit as `lightning-perf compare` measures it, then size and latency."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning_perf as lp
from lightning_perf.cli.trainer_cli import trainer_command
from lightning_perf.cli.worker import MeasuredCLI
from lightning_perf.deploy.latency import Target
from lightning_perf.deploy.source import FP32, INT8, NotExportable

#: A runtime of its own where there is one for the module; else the module's own code, with its weights from a file.
RUNTIMES = ("onnxruntime", "stored")
_ROUNDS = 5


class RecipeCLI(MeasuredCLI):
    """Adds to a measured fit what its module weighs and how long it takes for one sample."""

    def after_fit(self) -> None:
        """LightningCLI's hook: write the run, speed as that of all processes together."""
        super().after_fit()
        trainer: Any = self.trainer
        if not trainer.is_global_zero:
            return
        path = Path(self.job["out"])
        run = json.loads(path.read_text(encoding="utf-8"))
        if run["quantities"]["samples_per_second"] is not None:
            run["quantities"]["samples_per_second"] *= trainer.world_size
        if self.job["seed"]:  # size and latency do not follow from the seed, and take longer than many a fit
            run["missing"] |= dict.fromkeys(("file_bytes", "latency_seconds"), "of the first seed only")
            path.write_text(json.dumps(run), encoding="utf-8")
            return
        is_rounded = any(isinstance(one, lp.QuantizationAwareTraining) for one in trainer.callbacks)
        loader: Any = self.datamodule.val_dataloader() if self.datamodule is not None else trainer.val_dataloaders
        keep = Path(self.job["artifact"])
        found, notes = deployed(self.model, loader, INT8 if is_rounded else FP32, keep)
        if found:
            run["quantities"] |= found
        else:
            run["missing"] |= dict.fromkeys(("file_bytes", "latency_seconds"), notes[-1])
        run["notes"] = [*run["notes"], *notes]
        path.write_text(json.dumps(run), encoding="utf-8")


def deployed(
    module: Any, loader: Iterable[Any], precision: str, keep: Path | None = None
) -> tuple[dict[str, float], list[str]]:
    """Bytes of the exported file, deflated, and seconds of a call with one sample on one thread; and how, or why not.

    What can be opened without the module is kept as the folder ``keep``.
    """
    notes = []
    for runtime in RUNTIMES:
        with tempfile.TemporaryDirectory() as folder:
            try:
                made = lp.export(
                    module,
                    loader,
                    Path(folder) / "model.lpx",
                    runtimes=runtime,
                    precisions=[precision],
                    batches=(1,),
                    rounds=_ROUNDS,
                )
            except (NotExportable, ValueError) as error:
                notes.append(f"not exported to {runtime}: {error}")
                continue
            [(name, entry)] = made.manifest["variants"].items()
            if not entry["passed"]:
                notes.append(f"{name} does not pass: {entry['reason']}")
                continue
            size = sum(len(zlib.compress(path.read_bytes())) for path in files_of(made.path, entry["path"]))
            seconds = entry["seconds"].get(Target(1, 1).key) or next(iter(entry["seconds"].values()))
            if keep and entry["runtime"] == RUNTIMES[0]:
                shutil.rmtree(keep, ignore_errors=True)
                shutil.copytree(made.path, keep)
        return {"file_bytes": size, "latency_seconds": seconds}, [*notes, f"deployed as {name}"]
    return {}, notes


def files_of(folder: Path, path: str) -> list[Path]:
    """The files of one variant: those beside its main one, if they have a folder of their own."""
    main = folder / path
    return [main] if main.parent == folder else sorted(one for one in main.parent.rglob("*") if one.is_file())


def main(argument: str) -> None:
    """``argument`` is the JSON that :mod:`lightning_perf.cli.worker` takes."""
    RecipeCLI.job = json.loads(argument)
    arguments = ["fit", *RecipeCLI.job["args"], f"--seed_everything={RecipeCLI.job['seed']}"]
    trainer_command(arguments, cli_class=RecipeCLI, save_config_callback=None)


if __name__ == "__main__":
    main(sys.argv[1])
