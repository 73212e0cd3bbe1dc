"""Two short FASTA files."""

from __future__ import annotations

from pathlib import Path


def arguments(folder: Path, *, cuts: bool) -> list[str]:
    """Forty sequences of two classes."""
    (folder / "fasta").mkdir()
    for name, sequence in (("even", "ACGTN" * 6), ("odd", "TTGCA" * 7)):
        records = [f">{name} {i}\n{sequence[i:]}\n" for i in range(20)]
        (folder / "fasta" / f"{name}.fasta").write_text("".join(records))
    return [f"--data.path={folder / 'fasta'}", "--data.length=32", "--data.batch_size=8", "--model.width=32"]
