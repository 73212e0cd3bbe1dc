"""A short text."""

from __future__ import annotations

from pathlib import Path


def arguments(folder: Path, *, cuts: bool) -> list[str]:
    """One sentence over and over; of narrow models the output layer, which is not cut, has most of the products."""
    (folder / "text.txt").write_text("It is a truth universally acknowledged. " * 200)
    small = [f"--data.path={folder / 'text.txt'}", "--data.batch_size=4"]
    return small if cuts else [*small, "--model.width=16"]
