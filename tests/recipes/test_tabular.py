"""The tabular recipe: module, tables, encoding, and its default configuration."""

from __future__ import annotations

import math
import statistics
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from recipes.tabular import tables
from recipes.tabular.data import TableData
from recipes.tabular.module import TabularClassifier, mlp
from recipes.tabular.tables import BUNDLED, Table, encode, read

HOUSES = """rooms,garden,area,heating,sold
3,yes,80.5,gas,no

4,no,,oil,yes
5,yes,120,gas,yes
2,no,40,,no
"""


def small_trainer(**arguments: Any) -> pl.Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return pl.Trainer(accelerator="cpu", enable_model_summary=False, **quiet, **arguments)


@pytest.fixture
def houses(tmp_path: Path) -> Path:
    path = tmp_path / "houses.csv"
    path.write_text(HOUSES)
    return path


# --- module -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "sizes"), [(0, [(5, 2)]), (1, [(5, 7), (7, 2)]), (3, [(5, 7), (7, 7), (7, 7), (7, 2)])]
)
def test_layers_are_counted_by_hand(layers: int, sizes: list[tuple[int, int]]) -> None:
    linear = [one for one in mlp(5, 7, layers, 2, 0.5) if isinstance(one, nn.Linear)]
    assert [(one.in_features, one.out_features) for one in linear] == sizes


def test_another_number_of_columns_is_named() -> None:
    with pytest.raises(ValueError, match=r"rows of 13 columns do not fit columns=64: build the module with columns=13"):
        TabularClassifier()(torch.zeros(2, 13))


class Recorder(pl.Callback):
    """Keeps logits and labels of validation."""

    def __init__(self) -> None:
        self.logits: list[Tensor] = []
        self.labels: list[Tensor] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        def keep(module: nn.Module, args: Any, output: Tensor) -> None:
            if not module.training:
                self.logits.append(output.detach().clone())

        pl_module.get_submodule("net").register_forward_hook(keep)

    def on_validation_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        self.labels.append(batch[1])


def test_it_learns_and_logs_what_a_naive_count_finds() -> None:
    torch.manual_seed(0)
    recorder = Recorder()
    trainer = small_trainer(max_epochs=4, num_sanity_val_steps=0, limit_val_batches=1, callbacks=[recorder])
    trainer.fit(TabularClassifier(lr=3e-3), TableData(eval_batch_size=100))
    logits, labels = recorder.logits[-1].double(), recorder.labels[-1]
    losses = [float(row.exp().sum().log() - row[label]) for row, label in zip(logits, labels.tolist(), strict=True)]
    right = [int(row.argmax()) == label for row, label in zip(logits, labels.tolist(), strict=True)]
    assert trainer.callback_metrics["val_loss"].item() == pytest.approx(statistics.mean(losses), rel=1e-5)
    assert trainer.callback_metrics["val_acc"].item() == pytest.approx(statistics.mean(right), rel=1e-5)
    assert statistics.mean(right) > 0.9
    assert {"train_loss_step", "train_loss_epoch", "train_acc"} <= set(trainer.callback_metrics)


def test_predictions_are_probabilities_of_the_test_rows() -> None:
    data = TableData("wine", batch_size=16)
    predictions: Any = small_trainer().predict(TabularClassifier(columns=13, num_classes=3), data)
    (rows,) = predictions
    assert rows.shape == (36, 3)
    torch.testing.assert_close(rows.sum(1), torch.ones(36))


# --- tables -----------------------------------------------------------------------------------------------------------


def test_csv_is_read_by_kind_of_column(houses: Path) -> None:
    table = read(houses, "sold")
    assert table.numbers.isnan().tolist() == [[False, False], [False, True], [False, False], [False, False]]
    assert table.numbers.nan_to_num(-1).tolist() == [[3, 80.5], [4, -1], [5, 120], [2, 40]]
    assert [list(column) for column in table.texts] == [["yes", "no", "yes", "no"], ["gas", "oil", "gas", ""]]
    assert (table.labels.tolist(), table.classes) == ([0, 1, 1, 0], ["no", "yes"])


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    path = tmp_path / "excel.csv"
    path.write_text(HOUSES, encoding="utf-8-sig")
    assert read(path, "rooms").classes == ["2", "3", "4", "5"]


def test_encoding_equals_naive_loops(houses: Path) -> None:
    table = read(houses, "sold")
    train = [0, 1, 3]
    rows = encode(table, torch.tensor(train))
    areas = [80.5, 40.0]  # of the training rows that have one
    expected = []
    for row in range(4):
        rooms, area = table.numbers[row].tolist()
        line = [(rooms - 3) / statistics.pstdev([3, 4, 2])]
        line += [0.0 if math.isnan(area) else (area - statistics.mean(areas)) / statistics.pstdev(areas)]
        line += [float(table.texts[0][row] == value) for value in ("no", "yes")]
        line += [float(table.texts[1][row] == value) for value in ("", "gas", "oil")]
        expected.append(line)
    torch.testing.assert_close(rows, torch.tensor(expected))


def test_what_training_cannot_tell_is_zero() -> None:
    numbers = torch.tensor([[1.0, math.nan], [1.0, math.nan], [5.0, 2.0]])
    table = Table(numbers, [["a", "a", "b"]], torch.zeros(3, dtype=torch.int64), ["only"])
    assert encode(table, torch.tensor([0, 1])).tolist() == [[0, 0, 1], [0, 0, 1], [0, 0, 0]]


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_tables_are_as_documented(name: str) -> None:
    sizes = {"digits": (1797, 64, 10), "breast_cancer": (569, 30, 2), "wine": (178, 13, 3), "iris": (150, 4, 3)}
    table = tables.bundled(name)
    assert (*table.numbers.shape, len(table.classes)) == sizes[name]
    assert set(table.labels.tolist()) == set(range(len(table.classes)))


def test_missing_scikit_learn_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"needed for its table 'digits': pip install 'lightning-perf\[recipes\]'"
    ):
        TableData().setup("fit")


@pytest.mark.parametrize(
    ("content", "target", "message"),
    [
        (HOUSES, "price", "target='price' is no column of .*: the columns are rooms, garden, area, heating, sold"),
        ("a,b\n1\n", "a", "row 1 has 1 values and the header 2"),
        ("a,b\n", "a", "has 0 rows and 1 columns beside 'a'"),
        ("a\n1\n", "a", "has 1 rows and 0 columns beside 'a'"),
        ("", "a", "target='a' is no column"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, content: str, target: str, message: str) -> None:
    (tmp_path / "bad.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "bad.csv", target)


# --- data -------------------------------------------------------------------------------------------------------------


def test_split_is_disjoint_complete_and_follows_the_seed() -> None:
    def parts(seed: int) -> list[list[int]]:
        data = TableData("iris", batch_size=8, seed=seed)
        return [order.tolist() for order in data._split(150).values()]

    train, val, test = parts(0)
    assert [len(train), len(val), len(test)] == [90, 30, 30]
    assert sorted(train + val + test) == list(range(150))
    assert parts(0) == [train, val, test]
    assert parts(1) != [train, val, test]


def test_only_training_rows_shape_the_encoding() -> None:
    data = TableData("wine", batch_size=16)
    data.setup("fit")
    rows = data.parts["train"].tensors[0]
    torch.testing.assert_close(rows.mean(0), torch.zeros(13), atol=1e-5, rtol=0)
    torch.testing.assert_close(rows.std(0, correction=0), torch.ones(13))
    assert data.parts["val"].tensors[0].mean(0).abs().max() > 0.01
    assert (data.columns, len(data.classes)) == (13, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"table": "titanic"}, r"table='titanic' is not known: choose one of breast_cancer, digits, iris, wine"),
        ({"path": "houses.csv"}, r"path='houses.csv' needs the column with the class"),
        ({"path": "nowhere.csv", "target": "a"}, r"path='nowhere.csv' is no file"),
        ({"val_share": 0.5, "test_share": 0.5}, r"val_share=0.5 and test_share=0.5"),
        ({"test_share": 0.0}, r"test_share=0.0: each is a part"),
        ({"batch_size": 5000}, r"give 1079 for training, 359 for validation and 359 for the test; a batch of 5000"),
        ({"val_share": 1e-4}, r"0 for validation"),
    ],
)
def test_what_cannot_be_served_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TableData(**arguments).setup("fit")


def test_loaders_before_setup_say_so() -> None:
    with pytest.raises(ValueError, match=r"call setup\('fit'\) first"):
        TableData().train_dataloader()
