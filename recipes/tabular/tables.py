"""Where the table comes from, and how its columns become numbers."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

BUNDLED = ("breast_cancer", "digits", "iris", "wine")


@dataclass(frozen=True)
class Table:
    """Rows to classify.

    `numbers` (N, numeric columns) float32 with NaN where a value is missing; `texts` holds the N values of each other
    column; `labels` (N,) int64 count in `classes`.
    """

    numbers: Tensor
    texts: Sequence[Sequence[str]]
    labels: Tensor
    classes: Sequence[str]


def bundled(name: str) -> Table:
    """A table that comes with scikit-learn: nothing is downloaded.

    Raises:
        ValueError: there is no such table.
        ModuleNotFoundError: scikit-learn is not installed.
    """
    if name not in BUNDLED:
        raise ValueError(f"table={name!r} is not known: choose one of {', '.join(BUNDLED)}, or pass a CSV as path.")
    try:
        from sklearn import datasets
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "sklearn":
            raise
        raise ModuleNotFoundError(
            f"scikit-learn is not installed; it is needed for its table {name!r}: pip install 'lightning-perf[recipes]', "
            "or pass a CSV file of your own as path.",
            name="sklearn",
        ) from error
    found = getattr(datasets, f"load_{name}")()
    labels = torch.as_tensor(found.target, dtype=torch.int64)
    return Table(torch.as_tensor(found.data, dtype=torch.float32), (), labels, [str(one) for one in found.target_names])


def read(path: Path, target: str) -> Table:
    """A CSV file with a header; `target` is the column to predict, its values in sorted order are the classes.

    A column whose values are all numbers, or empty, is numeric; every other column is text.

    Raises:
        ValueError: `path` is no file; there is no such column; a row has more or fewer values than the header; no rows,
            or no column beside the target.
    """
    if not path.is_file():
        raise ValueError(f"path={str(path)!r} is no file: name a CSV file, or leave path out for a bundled table.")
    with path.open(newline="", encoding="utf-8-sig") as file:
        header, *rows = [row for row in csv.reader(file) if row] or [[]]
    if target not in header:
        raise ValueError(f"target={target!r} is no column of {path}: the columns are {', '.join(header)}.")
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise ValueError(f"{path}: row {number} has {len(row)} values and the header {len(header)}: mend the row.")
    if not rows or len(header) == 1:
        raise ValueError(
            f"{path} has {len(rows)} rows and {len(header) - 1} columns beside {target!r}: both are needed."
        )
    columns = dict(zip(header, zip(*rows, strict=True), strict=True))
    answers = columns.pop(target)
    classes = sorted(set(answers))
    numeric = {name: numbers for name, column in columns.items() if (numbers := _numbers(column)) is not None}
    return Table(
        numbers=torch.tensor(list(numeric.values()), dtype=torch.float32)
        .reshape(len(numeric), len(rows))
        .T.contiguous(),
        texts=[column for name, column in columns.items() if name not in numeric],
        labels=torch.tensor([classes.index(answer) for answer in answers]),
        classes=classes,
    )


def encode(table: Table, train: Tensor) -> Tensor:
    """The rows as (N, C) float32: numbers standardised, then one column per value of each text column.

    Means, deviations and values are those of the rows `train` (indices) alone. A missing number becomes the mean, which
    is 0; a text that training has not seen is 0 in all of its columns; a constant column is 0.

    Example::

        >>> rows = Table(torch.tensor([[1.0], [3.0], [5.0]]), [["b", "a", "c"]], torch.tensor([0, 1, 0]), ["no", "yes"])
        >>> encode(rows, torch.tensor([0, 1])).tolist()
        [[-1.0, 0.0, 1.0], [1.0, 1.0, 0.0], [3.0, 0.0, 0.0]]
    """
    known = table.numbers[train]
    mean = known.nanmean(0).nan_to_num()
    deviation = (known - mean).square().nanmean(0).sqrt().nan_to_num()
    numbers = (table.numbers - mean) / torch.where(deviation > 0, deviation, math.inf)
    parts = [numbers.nan_to_num()]
    seen: list[int] = train.tolist()
    for column in table.texts:
        values = sorted({column[row] for row in seen})
        parts.append(torch.tensor([[float(text == value) for value in values] for text in column]))
    return torch.cat(parts, dim=1)


def _numbers(column: Sequence[str]) -> list[float] | None:
    try:
        return [float(value) if value.strip() else math.nan for value in column]
    except ValueError:
        return None
