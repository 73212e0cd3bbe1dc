"""Named tuples and dataclasses around tensors: into the module in their own classes, into the manifest as plain data."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import lightning_perf as lp
from lightning_perf.deploy.serve import gather
from lightning_perf.deploy.structures import as_given, in_form_of, take_apart


class Pair(NamedTuple):
    x: Tensor
    shift: Tensor


@dataclass(frozen=True)
class Plain:
    x: Tensor
    shift: Tensor


@dataclass(eq=False, slots=True)
class Made:
    """Its constructor takes what it is made of, as that of chemprop's batches of graphs."""

    parts: InitVar[list[Tensor]]
    x: Tensor = field(init=False)
    shift: Tensor = field(init=False)
    count: int = field(init=False)

    def __post_init__(self, parts: list[Tensor]) -> None:
        self.x, self.shift = parts
        self.count = len(parts)

    def __len__(self) -> int:
        return self.count


FORMS: list[Callable[[Tensor, Tensor], Any]] = [Pair, Plain, lambda x, shift: Made([x, shift])]


class Net(nn.Module):
    """Reads its batch by attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 3)

    def forward(self, batch: Any) -> Any:
        assert type(batch) in (Pair, Plain, Made)
        return Plain(self.head(batch.x) * len(vars(self)), batch.shift + 1)


@pytest.mark.parametrize("form", FORMS, ids=["named tuple", "dataclass", "dataclass made of parts"])
def test_batches_with_attributes_are_exported(form: Callable[..., Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x, shift = Net().eval(), torch.randn(6, 8), torch.randn(6, 1)
    made = lp.export(
        net, {"batch": form(x, shift)}, tmp_path / "m.lpx", runtimes="onnxruntime", precisions=["fp32"], rounds=0
    )
    assert made.best == "onnxruntime-fp32"
    expected = net(form(x, shift))
    found = lp.load_artifact(made.path)(form(x[:2], shift[:2]))
    torch.testing.assert_close(found["x"], expected.x[:2].detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found["shift"], shift[:2] + 1)


@pytest.mark.parametrize("form", FORMS, ids=["named tuple", "dataclass", "dataclass made of parts"])
def test_structures_survive_the_manifest(form: Callable[..., Any]) -> None:
    x, shift = torch.ones(2), torch.zeros(2)
    leaves: list[Tensor] = []
    spec = take_apart({"a": [form(x, shift)]}, leaves, "batch")
    assert leaves == [x, shift]
    spec = json.loads(json.dumps(spec, sort_keys=True))
    found: list[Any] = [None, None]
    gather(spec, {"a": [form(x + 1, shift)]}, found, "batch")
    assert [float(one[0]) for one in found] == [2.0, 0.0]
    example = {"a": [form(x, shift)]}
    own, stand_in = as_given(spec, found, example)["a"][0], as_given(spec, found, None)["a"][0]
    assert type(own) is type(example["a"][0])
    for one in (own, stand_in):
        assert (one.x, one.shift) == (found[0], found[1])
    assert example["a"][0].x is x


def test_a_dataclass_among_outputs_is_given_back_to_a_metric() -> None:
    assert in_form_of(Plain(torch.ones(1), torch.ones(1)), {"x": 1, "shift": 2}) == Plain(1, 2)  # type: ignore[arg-type]


def test_an_object_is_refused_with_its_name() -> None:
    class Graph:
        pass

    with pytest.raises(ValueError, match="batch is a Graph; tensors, lists, tuples, dicts, dataclasses and plain"):
        take_apart(Graph(), [], "batch")
