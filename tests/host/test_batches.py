"""How many samples and tokens a batch holds, on what real loaders give: NamedTuples, graphs, ragged lists."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import pytest
import torch

from lightning_perf.host import BatchMeter, batch_size_of


class Pair(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor | None


@dataclasses.dataclass
class Data:
    x: torch.Tensor
    name: str = "a"


class Graphs:
    """Atoms of all molecules in one tensor, as chemprop and PyG batch them."""

    def __init__(self, graphs: int, atoms: int) -> None:
        self.V = torch.zeros(atoms, 3)
        self.batch = torch.zeros(atoms, dtype=torch.long)
        self._graphs = graphs

    def __len__(self) -> int:
        return self._graphs


class PyG:
    def __init__(self) -> None:
        self.x = torch.zeros(50, 3)
        self.num_graphs = 6


class WithGraph(NamedTuple):
    graph: Any
    targets: torch.Tensor


IDS = torch.zeros(4, 16, dtype=torch.long)


@pytest.mark.parametrize(
    ("batch", "samples", "tokens"),
    [
        (torch.zeros(5, 3), 5, None),
        ([torch.zeros(5, 3), torch.zeros(5)], 5, None),
        ((torch.zeros(7, 3, 8, 8), torch.zeros(7, dtype=torch.long)), 7, None),
        ({"input_ids": IDS, "attention_mask": IDS, "labels": torch.zeros(4)}, 4, 64),
        (Pair(torch.zeros(3, 2), None), 3, None),
        (Data(torch.zeros(9, 2)), 9, None),
        (WithGraph(Graphs(8, 100), torch.zeros(8, 1)), 8, None),
        (PyG(), 6, None),
        ((Graphs(8, 100), torch.zeros(100, 3), torch.zeros(100, 2)), 8, None),  # per node, but the graphs say how many
        (({"encoder": torch.zeros(4, 10, 2), "lengths": torch.zeros(4)}, (torch.zeros(4, 5), None)), 4, None),
        ([torch.zeros(3, 32, 40), torch.zeros(3, 20, 20)], 2, None),
        (
            [
                [torch.zeros(3, 32, 40), torch.zeros(3, 20, 20), torch.zeros(3, 9, 9)],
                [{"boxes": torch.zeros(2, 4)}] * 3,
            ],
            3,
            None,
        ),
        ([torch.zeros(5, 2), torch.zeros(9, 2), torch.zeros(4, 2)], 3, None),
        ([torch.zeros(6, 3), torch.zeros(6, 5)], 6, None),
        ([[], torch.zeros(6, 3), {}], 6, None),
        ([], None, None),
        ("words", None, None),
        (torch.tensor(1.0), None, None),
    ],
)
def test_samples_and_tokens(batch: Any, samples: int | None, tokens: int | None) -> None:
    assert BatchMeter()(batch) == (samples, tokens)
    assert batch_size_of(batch) == samples


def test_most_members_decide_and_the_loader_has_the_first_word() -> None:
    """Nodes and edges of a graph without a length: three members of 8 against one of 100 and one of 240."""
    batch = (torch.zeros(100, 3), torch.zeros(240, 2), torch.zeros(8), torch.zeros(8), torch.zeros(8))
    assert BatchMeter()(batch)[0] == 8
    assert BatchMeter(hint=100)(batch)[0] == 100
    assert BatchMeter(hint=5)(batch)[0] == 8


def test_later_batches_are_read_where_the_first_one_was() -> None:
    """The last, smaller batch; then a batch of another structure under the same type."""
    meter = BatchMeter(hint=4)
    assert meter({"ids": IDS, "y": torch.zeros(4)}) == (4, 64)
    assert meter({"ids": IDS[:3], "y": torch.zeros(3)}) == (3, 48)
    assert meter({"pixels": torch.zeros(2, 3, 8, 8)}) == (2, None)
