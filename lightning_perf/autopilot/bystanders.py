"""The other callbacks of a fit that is only measured: which stay out, and where the rest and the loggers write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_perf.host import PerfCallback, is_a
from lightning_perf.host.log_folders import holds_files, log_below


class Bystanders(PerfCallback):
    """Has a measured fit leave alone what the user's own fits have written, and takes some callbacks out.

    Checkpoints cost what they cost, and go below ``folder``, together where they went together. This is the first of the
    Trainer's callbacks, so that those which the module itself brings (``configure_callbacks``) are there, and not set up.
    Nothing is put back: what an exception or the end of a fit has a checkpoint write or remove comes later.

    Args:
        folder: where checkpoints go.
        stay_out: names of Lightning's classes of callbacks that take no part.
    """

    def __init__(self, folder: str | Path, stay_out: Sequence[str] = ()) -> None:
        super().__init__(folder=str(folder), stay_out=list(stay_out))
        self._folder, self._stay_out = Path(folder), tuple(stay_out)
        self._folders: dict[Any, str] = {}

    def engage(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Before any of the others is set up, and after Lightning has looked for the last checkpoint, if it was told to."""
        make_way(trainer, self._stay_out)
        self.send_away(trainer)

    def send_away(self, trainer: Any) -> None:
        """Give checkpoints their folder."""
        for callback in trainer.callbacks:
            if (
                is_a(callback, "Checkpoint")
                and hasattr(callback, "dirpath")
                and callback.dirpath not in self._folders.values()
            ):
                new = str(self._folder / f"checkpoints_{len(self._folders)}")
                callback.dirpath = self._folders.setdefault(callback.dirpath, new)


def keep_apart(trainer: Any, folder: str | Path, stay_out: Sequence[str] = ()) -> None:
    """Before a measured fit: see :class:`Bystanders`. Loggers whose folder holds files get one below ``folder``, too."""
    make_way(trainer, stay_out)
    first = Bystanders(folder, stay_out)
    trainer.callbacks.insert(0, first)
    if any(is_a(callback, "OnExceptionCheckpoint") for callback in trainer.callbacks):
        first.send_away(trainer)  # Lightning would begin with the last checkpoint there is, without being told to
    profiler = trainer.profiler
    if getattr(profiler, "dirpath", None) or getattr(profiler, "filename", None):
        profiler.dirpath = str(Path(folder) / "profiler")
    for index, logger in enumerate(trainer.loggers):
        if holds_files(getattr(logger, "log_dir", None)):
            log_below(logger, Path(folder) / f"logs_{index}")


def make_way(trainer: Any, stay_out: Sequence[str]) -> None:
    """Take callbacks of these classes of Lightning's out."""
    trainer.callbacks[:] = [one for one in trainer.callbacks if not any(is_a(one, name) for name in stay_out)]
