"""A few small molecules."""

from __future__ import annotations

from pathlib import Path

import pytest

SMILES = ("C", "CC", "CCO", "c1ccccc1", "CC(=O)O", "C#N", "CCN", "CCCl", "C1CCCCC1", "[Na+].[Cl-]")


def arguments(folder: Path, *, cuts: bool) -> list[str]:
    """A CSV file of 40 rows, and a narrow module."""
    pytest.importorskip("rdkit", reason="needs rdkit (extra molecules)")
    rows = [f"{SMILES[i % len(SMILES)]},{i % 7 - 3}" for i in range(40)]
    (folder / "molecules.csv").write_text("\n".join(["smiles,energy", *rows]) + "\n")
    data = [f"--data.path={folder / 'molecules.csv'}", "--data.target=energy", "--data.batch_size=8"]
    return [*data, "--model.width=32", "--model.layers=2"]
