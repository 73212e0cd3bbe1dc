"""A table of a few rows, of numbers and of words."""

from __future__ import annotations

from pathlib import Path

COLOURS = ("red", "green", "blue")


def arguments(folder: Path, *, cuts: bool) -> list[str]:
    """A CSV file of 60 rows with five encoded columns, and a narrow module for it."""
    rows = [f"{i},{i * i % 7},{COLOURS[i % 3]},{'yes' if i % 4 else 'no'}" for i in range(60)]
    (folder / "table.csv").write_text("\n".join(["a,b,colour,bought", *rows]) + "\n")
    data = [f"--data.path={folder / 'table.csv'}", "--data.target=bought", "--data.batch_size=8"]
    return [*data, "--model.columns=5", "--model.num_classes=2", "--model.width=32"]
