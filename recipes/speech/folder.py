"""Folders of wavs in the layout of Speech Commands, and their split by speaker or by text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

LISTS = {"val": "validation_list.txt", "test": "testing_list.txt"}


@dataclass(frozen=True)
class Clip:
    """A file, the folder's name, who speaks, and the part that the data set's own lists put it in (`""` without lists)."""

    path: Path
    word: str
    speaker: str
    part: str = ""


def find(root: Path, words: Sequence[str] | None = None) -> list[Clip]:
    """The clips `root/WORD/SPEAKER_nohash_N.wav` of the given or all words, in order of words and names.

    The layout of Speech Commands (Warden 2018, https://arxiv.org/abs/1804.03209). Without `_nohash_` the whole name is
    the speaker; `.WAV` is read as `.wav`. Folders that start with `_`, such as `_background_noise_`, are no words.

    Raises:
        ValueError: `root` is no folder, lacks one of the words, or holds fewer than two words.
    """
    if not root.is_dir():
        raise ValueError(f"root={str(root)!r} is no folder: name one with wavs as WORD/*.wav.")
    found = {one.name: _wavs(one) for one in sorted(root.iterdir()) if one.is_dir()}
    found = {name: files for name, files in found.items() if files and not name.startswith(("_", "."))}
    lacking = sorted(set(words or ()) - set(found))
    if lacking:
        raise ValueError(f"{root} has no wavs of {', '.join(lacking)}: its words are {', '.join(found) or 'none'}.")
    chosen = sorted(set(words)) if words else list(found)
    if len(chosen) < 2:
        raise ValueError(f"{root} needs two folders WORD/*.wav or more; found: {', '.join(chosen) or 'none'}.")
    listed = _lists(root)
    return [
        Clip(
            path, word, path.stem.partition("_nohash_")[0], listed.get(f"{word}/{path.name}", "train" if listed else "")
        )
        for word in chosen
        for path in found[word]
    ]


def split(groups: Sequence[str], val_share: float, test_share: float, seed: int) -> dict[str, list[int]]:
    """Places of `groups` in the parts `train`, `val` and `test`: a group is in one part, a share of the groups in each.

    Raises:
        ValueError: shares that leave a part without a group.

    Example::

        >>> split(["anna", "anna", "ben", "carl"], val_share=0.3, test_share=0.3, seed=0)
        {'train': [2], 'val': [3], 'test': [0, 1]}
    """
    names = sorted(set(groups))
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    val, test = round(len(names) * val_share), round(len(names) * test_share)
    if min(val, test, len(names) - val - test) < 1:
        raise ValueError(
            f"{len(names)} speakers or texts (val_share={val_share}, test_share={test_share}) give "
            f"{len(names) - val - test} for training, {val} for validation and {test} for the test; one each is needed: "
            "change the shares."
        )
    part_of = {names[index]: "val" for index in order[:val]}
    part_of |= {names[index]: "test" for index in order[val : val + test]}
    parts: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for index, group in enumerate(groups):
        parts[part_of.get(group, "train")].append(index)
    return parts


def _wavs(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() == ".wav")


def _lists(root: Path) -> dict[str, str]:
    """The part of each `WORD/FILE` that the lists name; nothing where either list is missing."""
    if not all((root / name).is_file() for name in LISTS.values()):
        return {}
    return {line.strip(): part for part, name in LISTS.items() for line in (root / name).read_text().splitlines()}
