"""A table, encoded and split into training, validation and test rows, as an ordinary LightningDataModule."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from . import tables


class TableData(L.LightningDataModule):
    """Rows of a table with their class: bundled with scikit-learn, or a CSV file.

    Numbers are standardised and texts become one column per value, with what the training rows alone tell. `columns`
    and `classes` say after `setup` what the module has to be built for; a line of the log says so too. For prediction
    the test rows are served.

    Args:
        table: a table of scikit-learn: `digits` (1797 rows, 64 columns, 10 classes), `breast_cancer` (569, 30, 2),
            `wine` (178, 13, 3) or `iris` (150, 4, 3).
        path: a CSV file with a header, instead of `table`.
        target: the column of `path` that holds the class.
        batch_size: rows per training batch; an incomplete last batch is dropped.
        eval_batch_size: rows per batch in validation, test and prediction.
        num_workers: worker processes per loader.
        val_share: part of the rows for validation.
        test_share: part of the rows for the test.
        seed: of the split, and of nothing else: every run with the same one validates on the same rows.

    Raises:
        ValueError: an unknown table, file or column; `path` without `target`; shares that leave too little of a part.
        ModuleNotFoundError: scikit-learn, which brings the tables, is not installed.

    Example::

        >>> data = TableData("wine", batch_size=16)
        >>> data.setup("fit")
        >>> rows, labels = next(iter(data.train_dataloader()))
        >>> rows.shape, rows.dtype, labels.shape, data.classes
        (torch.Size([16, 13]), torch.float32, torch.Size([16]), ['class_0', 'class_1', 'class_2'])
    """

    def __init__(
        self,
        table: str = "digits",
        path: str | None = None,
        target: str | None = None,
        batch_size: int = 64,
        eval_batch_size: int = 512,
        num_workers: int = 0,
        val_share: float = 0.2,
        test_share: float = 0.2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not (0 < val_share < 1 and 0 < test_share < 1 and val_share + test_share < 1):
            raise ValueError(
                f"val_share={val_share} and test_share={test_share}: each is a part of the rows between 0 and 1, and "
                "together they must leave some to train on."
            )
        if path is not None and target is None:
            raise ValueError(f"path={path!r} needs the column with the class: pass its name as target.")
        self.save_hyperparameters()
        self.table = table
        self.path = path
        self.target = target
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.val_share = val_share
        self.test_share = test_share
        self.seed = seed

        self.columns = 0
        self.classes: list[str] = []
        self.parts: dict[str, TensorDataset] = {}

    def setup(self, stage: str) -> None:
        if self.parts:
            return
        if self.path is None:
            name, table = self.table, tables.bundled(self.table)
        else:
            name, table = self.path, tables.read(Path(self.path).expanduser(), str(self.target))
        self.classes = list(table.classes)
        order = self._split(len(table.labels))
        rows = tables.encode(table, order["train"])
        self.columns = rows.shape[1]
        self.parts = {part: TensorDataset(rows[chosen], table.labels[chosen]) for part, chosen in order.items()}
        sizes = ", ".join(f"{len(chosen)} for {part}" for part, chosen in order.items())
        rank_zero_info(f"Table {name}: {self.columns} columns, {len(self.classes)} classes; rows: {sizes}")

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(
            self._part("train"), batch_size=self.batch_size, shuffle=True, drop_last=True, num_workers=self.num_workers
        )

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self._part("val"), batch_size=self.eval_batch_size, num_workers=self.num_workers)

    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self._part("test"), batch_size=self.eval_batch_size, num_workers=self.num_workers)

    def predict_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return self.test_dataloader()

    def _split(self, rows: int) -> dict[str, Tensor]:
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(self.seed))
        val, test = round(rows * self.val_share), round(rows * self.test_share)
        train = rows - val - test
        if train < self.batch_size or not val or not test:
            raise ValueError(
                f"{rows} rows (val_share={self.val_share}, test_share={self.test_share}) give {train} for training, "
                f"{val} for validation and {test} for the test; a batch of {self.batch_size} and one row each are "
                "needed: change the shares or lower batch_size."
            )
        return dict(zip(("train", "val", "test"), order.split([train, val, test]), strict=True))

    def _part(self, name: str) -> TensorDataset:
        if not self.parts:
            raise ValueError("the table is not loaded: call setup('fit') first.")
        return self.parts[name]
