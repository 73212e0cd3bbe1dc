"""Number words and their halves, as a file of two columns."""

from __future__ import annotations

from pathlib import Path

SYLLABLES = ("ba", "do", "ki", "lu", "me")


def arguments(folder: Path, *, cuts: bool) -> list[str]:
    """A file of 75 pairs, and a narrow module that translates two sentences; of narrow modules the output layer, which
    is not cut, has most of the products."""
    words = [f"{first}{second}{third}" for first in SYLLABLES for second in SYLLABLES for third in SYLLABLES[:3]]
    (folder / "words.tsv").write_text("".join(f"{word}\t{word[::-1]}\n" for word in words))
    data = [f"--data.path={folder / 'words.tsv'}", "--data.batch_size=8"]
    model = ["--model.layers=1", "--model.scored=2", "--model.longest=8"]
    return [*data, *model, f"--model.width={64 if cuts else 16}", "--trainer.check_val_every_n_epoch=1"]
