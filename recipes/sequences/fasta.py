"""Where the sequences come from: FASTA files of the user, or made-up DNA with a motif."""

from __future__ import annotations

import random
from pathlib import Path

SUFFIXES = (".fasta", ".fa", ".fna", ".faa")
LETTERS = "ACGT"
MOTIF = "TATAAAAG"


def read(path: Path) -> list[str]:
    """The sequences of a FASTA file, in capitals; headers are not looked at.

    Raises:
        ValueError: something stands before the first header, or there is no sequence.
    """
    sequences: list[list[str]] = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if line.startswith(">"):
            sequences.append([])
        elif line.strip():
            if not sequences:
                raise ValueError(f"{path}, line {number}: a FASTA file starts with a header, a line with '>'.")
            sequences[-1].append(line.strip().upper())
    found = ["".join(parts) for parts in sequences if parts]
    if not found:
        raise ValueError(f"{path} holds no sequence: leave the file out, or fill it.")
    return found


def folder(path: Path) -> dict[str, list[str]]:
    """The sequences of each FASTA file of a folder; its name without the suffix is the class.

    Raises:
        ValueError: `path` is no folder, holds fewer than two FASTA files, or two of one name.
    """
    if not path.is_dir():
        raise ValueError(f"path={str(path)!r} is no folder: name one with a FASTA file per class.")
    files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
    if len({file.stem for file in files}) < max(len(files), 2):
        names = ", ".join(file.name for file in files) or "none"
        raise ValueError(
            f"{path} needs two FASTA files ({', '.join(SUFFIXES)}) or more, each of another name; found: {names}."
        )
    return {file.stem: read(file) for file in files}


def made_up(count: int, length: int, seed: int) -> dict[str, list[str]]:
    """Random DNA with the motif of a TATA box (`TATAAAAG`) somewhere, and as much with the motif's letters in disorder.

    A made-up task, for a run without data. About one sequence in 500 of the second kind holds the motif by chance.

    Raises:
        ValueError: the motif does not fit into `length`.

    Example::

        >>> made = made_up(4, 20, seed=0)
        >>> ["TATAAAAG" in one for one in made["motif"]], len(made["shuffled"])
        ([True, True], 2)
    """
    if length < len(MOTIF):
        raise ValueError(f"length={length} is shorter than the motif of the made-up task: choose {len(MOTIF)} or more.")
    draw = random.Random(seed)
    made: dict[str, list[str]] = {"motif": [], "shuffled": []}
    for index in range(count):
        name = "motif" if index % 2 == 0 else "shuffled"
        planted = MOTIF
        while name == "shuffled" and planted == MOTIF:
            planted = "".join(draw.sample(MOTIF, len(MOTIF)))
        start = draw.randrange(length - len(MOTIF) + 1)
        letters = draw.choices(LETTERS, k=length)
        letters[start : start + len(MOTIF)] = planted
        made[name].append("".join(letters))
    return made
