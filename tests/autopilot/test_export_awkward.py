"""Modules that a runtime does not expect: they are exported, or the runtime is left out with what it raised."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lightning_perf as lp
from lightning_perf.autopilot.export_source import source_of
from lightning_perf.deploy import serve
from lightning_perf.deploy.call import describe_call, frozen_copy
from lightning_perf.deploy.pipeline import write_artifact
from lightning_perf.deploy.source import NotExportable

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


class ByShape(nn.Module):
    """Takes another way for batches of more than four, which no graph for any size can."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(2 * x if len(x) > 4 else x)


def test_a_branch_on_the_batch_size_is_exported_for_one_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = ByShape().eval(), torch.randn(6, 8)
    made = lp.export(module, x, tmp_path / "m.lpx", runtimes="onnxruntime", precisions=["fp32"], rounds=0)
    assert made.best == "onnxruntime-fp32"
    assert made.report is not None
    assert any(note.startswith("the batch size is fixed at 6: for any size") for note in made.report.notes)
    torch.testing.assert_close(lp.load_artifact(made.path)(x), module(x).detach())
    with pytest.raises(serve.ArtifactError, match=r"shape \(3, 8\) and must have \[6, 8\]"):
        lp.load_artifact(made.path)(x[:3])


class Spectrum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.rfft(x)


@pytest.mark.parametrize(
    ("module", "x", "words"),
    [
        (nn.Sequential(nn.Linear(16, 16), Spectrum()), torch.ones(3, 16), r"complex numbers.*use torch\.view_as_real"),
        (nn.Linear(4, 2).bfloat16(), torch.ones(3, 4).bfloat16(), r"bfloat16.*export module\.float\(\)"),
    ],
    ids=["complex", "bfloat16"],
)
def test_numbers_that_no_array_can_hold(module: nn.Module, x: Tensor, words: str, tmp_path: Path) -> None:
    with pytest.raises(NotExportable, match=words):
        lp.export(module, x, tmp_path / "m.lpx", runtimes="onnxruntime", precisions=["fp32"], rounds=0)


def test_a_forward_of_keywords_alone(tmp_path: Path) -> None:
    class Keywords(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(8, 3)

        def forward(self, **batch: Tensor) -> Tensor:
            return self.head(batch["x"]) * batch["mask"]

    module, batch = Keywords().eval(), {"x": torch.randn(6, 8), "mask": torch.arange(6).view(6, 1) > 2}
    made = lp.export(module, batch, tmp_path / "m.lpx", runtimes="onnxruntime", precisions=["fp32"], rounds=0)
    assert made.manifest["call"] == "forward(**batch)"
    torch.testing.assert_close(lp.load_artifact(made.path)(**batch), module(**batch).detach(), atol=1e-5, rtol=1e-5)


def test_an_example_without_samples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"x has the shape \[0, 8\].*pass a batch of one sample or more"):
        lp.export(ByShape(), torch.randn(0, 8), tmp_path / "m.lpx", runtimes="onnxruntime", rounds=0)


class Mapped(nn.Module):
    """Keeps what it saw, with the graph that leads to it."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(8, 8), nn.Linear(8, 3)
        self.maps: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.maps = [self.body(x).relu()]
        return self.head(self.maps[0])


@pytest.mark.parametrize("prepared", [False, True])
def test_a_module_that_keeps_tensors_with_a_graph(prepared: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = Mapped().eval(), torch.randn(16, 8)
    expected = module(x).detach()
    if prepared:
        lp.quantize(module, [x])
        module(x)
    kept = module.maps[0]
    assert kept.grad_fn is not None
    made = lp.export(module, [x], tmp_path / "m.lpx", runtimes=["onnxruntime", "parts", "stored"], rounds=0)
    assert module.maps[0] is kept
    for name in ("onnxruntime-fp32", "onnxruntime-int8", "parts-fp32", "parts-int8", "stored-fp32"):
        entry = made.manifest["variants"][name]
        assert entry["passed"], entry["reason"]
        found = lp.load_artifact(made.path, name, module=module)(x)
        assert float((found - expected).norm() / expected.norm()) < (1e-4 if "fp32" in name else 0.05)


def test_a_module_that_cannot_be_copied_says_why(tmp_path: Path) -> None:
    module: Any = ByShape()
    module.lock = threading.Lock()
    with pytest.raises(
        ValueError, match=r"ByShape cannot be copied \(TypeError: cannot pickle '_thread.lock' object\)"
    ):
        lp.export(module, torch.ones(2, 8), tmp_path / "m.lpx")


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_scripted_module_is_refused(tmp_path: Path) -> None:
    module = nn.Sequential(torch.jit.script(nn.Linear(8, 3)))
    with pytest.raises(ValueError, match=r"Sequential holds a RecursiveScriptModule.*scripted or traced from"):
        lp.export(module, torch.ones(2, 8), tmp_path / "m.lpx")


class Noise(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight + torch.randn_like(weight)


def test_parametrized_weights_are_exported_and_quantized(tmp_path: Path) -> None:
    torch.manual_seed(0)
    norm, orthogonal = nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.orthogonal
    module = nn.Sequential(norm(nn.Linear(8, 16)), nn.ReLU(), orthogonal(nn.Linear(16, 16)), nn.Linear(16, 3)).eval()
    x, names = torch.randn(32, 8), list(module.state_dict())
    expected = module(x).detach()
    made = lp.export(module, x, tmp_path / "m.lpx", runtimes=["onnxruntime", "stored"], rounds=0)
    for name in ("onnxruntime-fp32", "onnxruntime-int8", "stored-fp32"):
        entry = made.manifest["variants"][name]
        assert entry["passed"], entry["reason"]
        assert not any("left in float" in note for note in entry["notes"])
        found = lp.load_artifact(made.path, name, module=module)(x)
        assert float((found - expected).norm() / expected.norm()) < (1e-4 if "fp32" in name else 0.05)
    assert list(module.state_dict()) == names
    torch.testing.assert_close(module(x), expected)


def test_a_weight_that_is_drawn_anew_each_time_is_not_fixed() -> None:
    layer = nn.Linear(4, 2)
    nn.utils.parametrize.register_parametrization(layer, "weight", Noise())
    copied = frozen_copy(layer)
    assert not torch.equal(copied(torch.ones(1, 4)), copied(torch.ones(1, 4)))


def test_the_operator_that_onnx_lacks_is_named(tmp_path: Path) -> None:
    class Orthogonal(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.matrix_exp(x)

    with pytest.raises(NotExportable, match=r"no ONNX form \(DispatchError: No ONNX function found.*matrix_exp"):
        lp.export(
            Orthogonal(), torch.ones(2, 3, 3), tmp_path / "m.lpx", runtimes="onnxruntime", precisions=["fp32"], rounds=0
        )
