"""Tones in place of speech."""

from __future__ import annotations

from pathlib import Path

from tests.recipes.tones import write_tones


def arguments(folder: Path, *, cuts: bool) -> list[str]:
    """Twenty clips of two words by ten speakers, and half of the seconds; two batches are left for each of two processes."""
    root = write_tones(folder / "wavs")
    return [f"--data.root={root}", "--data.seconds=0.5", "--data.batch_size=2"]
