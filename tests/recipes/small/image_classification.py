"""Images of noise."""

from __future__ import annotations

from pathlib import Path

from tests.recipes.idx_files import write_files


def arguments(folder: Path, *, cuts: bool) -> list[str]:
    """Four files of a few images."""
    write_files(folder / "data")
    return [f"--data.root={folder / 'data'}", "--data.val_size=8", "--data.batch_size=4", "--data.eval_batch_size=8"]
