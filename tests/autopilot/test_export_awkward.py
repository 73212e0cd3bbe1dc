"""Modules that a runtime does not expect: they are exported, or the runtime is left out with what it raised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lightning_perf as lp
from lightning_perf.autopilot.export_source import source_of
from lightning_perf.deploy.call import describe_call
from lightning_perf.deploy.pipeline import write_artifact

BOTH: dict[str, Any] = {"runtimes": ["onnxruntime", "openvino"], "precisions": ["fp32", "int8"], "rounds": 0}


class Bag(nn.Module):
    """Its graph has nodes without inputs, and a loop that reads what is outside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(20, 16, mode="mean"), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.bag(x))


class Projected(nn.Module):
    """An LSTM whose hidden state is projected."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.LSTM(8, 16, proj_size=4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)[0])


class Counted(nn.Module):
    """Keeps a dictionary in its ``state_dict``."""

    def __init__(self, count: int = 0) -> None:
        super().__init__()
        self.head, self.count = nn.Linear(8, 3), count

    def get_extra_state(self) -> dict[str, int]:
        return {"count": self.count}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.count = state["count"]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x)


INPUTS = {Bag: torch.arange(40).remainder(20).view(8, 5), Projected: torch.ones(4, 5, 8), Counted: torch.ones(4, 8)}


@pytest.mark.parametrize("kind", INPUTS)
def test_they_are_exported(kind: type[nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = kind().eval(), INPUTS[kind]
    made = lp.export(module, x, tmp_path / "m.lpx", **BOTH)
    expected = module(x).detach()
    names = ["onnxruntime-fp32", "openvino-fp32", "onnxruntime-int8", "openvino-int8"]
    if kind is Bag:
        assert "no conversion of ReduceMean" in made.manifest["left_out"]["openvino-fp32"]
        names = [name for name in names if not name.startswith("openvino")]
    for name in names:
        assert made.manifest["variants"][name]["passed"], made.manifest["variants"][name]
        found = lp.load_artifact(made.path, name)(x)
        assert float((found - expected).norm() / expected.norm()) < (1e-4 if "fp32" in name else 0.05)


def test_extra_state_is_no_weight(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x, other = Counted(3).eval(), torch.randn(4, 8), Counted(5)
    made = lp.export(module, x, tmp_path / "m.lpx", runtimes="stored", precisions=["fp32"], rounds=0)
    torch.testing.assert_close(lp.load_artifact(made.path, module=other)(x), module(x).detach())
    assert (module.count, other.count) == (3, 5)


def test_what_a_runtime_raises_leaves_it_out(tmp_path: Path) -> None:
    def broken(source: Any, precision: str, folder: Path) -> Any:
        (folder / f"parts-{precision}").mkdir()
        (folder / f"parts-{precision}" / "half").write_text("written")
        raise KeyError("lstm")

    module, x = nn.Sequential(nn.Linear(4, 2)), torch.ones(3, 4)
    source = source_of(module, describe_call(module, (x,)), [[x]], ["fp32"])[0]
    made = write_artifact(
        source,
        tmp_path / "m.lpx",
        runtimes=["parts", "stored"],
        builders={"parts": broken},
        precisions=["fp32"],
        rounds=0,
    )
    assert made.manifest["left_out"] == {"parts-fp32": "it raises KeyError: 'lstm'"}
    assert list(made.manifest["variants"]) == ["stored-fp32"]
    assert not (made.path / "parts-fp32").exists()
    with pytest.raises(RuntimeError, match="nothing could be exported: parts-fp32: it raises KeyError: 'lstm'"):
        write_artifact(
            source, tmp_path / "n.lpx", runtimes="parts", builders={"parts": broken}, precisions=["fp32"], rounds=0
        )

