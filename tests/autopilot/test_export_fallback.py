"""Modules that no graph can hold: the largest parts, torch.compile, a smaller file; each says what is lost."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lightning_perf as lp
from lightning_perf.autopilot.export_source import calibrate
from lightning_perf.deploy import serve
from lightning_perf.deploy.call import describe_call
from lightning_perf.deploy.parts import find_parts
from lightning_perf.quantization.prepare import prepare


class Inner(nn.Module):
    """Exportable below, not as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Sequential(nn.Linear(8, 16), nn.ReLU()), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        """A branch on the data."""
        y = self.first(x)
        return self.second(y) if y.sum() > 0 else self.second(-y)


class Wild(nn.Module):
    """Two parts that can be exported, two that run as Python, one that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8))
        self.inner, self.twice = Inner(), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 8) to (B, 8)."""
        x = self.twice(self.twice(self.backbone(x)))
        return self.inner(x) if x.mean() > 100 else self.inner(x) * 2


@pytest.fixture
def wild() -> Wild:
    torch.manual_seed(0)
    return Wild().eval()


def test_the_largest_parts_are_found(wild: Wild) -> None:
    parts, refused = find_parts(wild, describe_call(wild, (torch.randn(4, 8),)))
    assert [part.name for part in parts] == ["backbone", "inner.first", "inner.second"]
    assert refused["twice"] == "it runs 2 times per call"
    assert "cannot trace Inner.forward" in refused["inner"]


def test_parts_run_in_a_runtime_and_the_rest_in_python(wild: Wild, tmp_path: Path) -> None:
    x = torch.randn(16, 8)
    made = lp.export(wild, x, tmp_path / "w.lpx", runtimes="parts", precisions=["fp32", "int8"], rounds=0)
    entries = made.manifest["variants"]
    assert entries["parts-fp32"]["passed"], entries["parts-fp32"]["reason"]
    assert entries["parts-int8"]["passed"], entries["parts-int8"]["reason"]
    assert "backbone, inner.first, inner.second (92% of the parameters)" in entries["parts-fp32"]["notes"][0]
    other = Wild()
    other.twice.load_state_dict(wild.twice.state_dict())
    found = lp.load_artifact(made.path, "parts-fp32", module=other)(x[:5])
    torch.testing.assert_close(found, wild(x[:5]).detach(), atol=1e-5, rtol=1e-5)
    with pytest.raises(serve.ArtifactError, match=r"needs the module's Python code.*module=your_module"):
        lp.load_artifact(made.path)
    with pytest.raises(ValueError, match="has no part 'backbone'"):
        lp.load_artifact(made.path, module=nn.Linear(2, 2))


class Reading(nn.Module):
    """A branch on the data, a norm that has nothing to quantize, and code that reads an attribute of a part."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 8) to (B, 8)."""
        y = self.second(self.norm(self.first(x))) / self.first.in_features
        return -y if y.sum() > 100 else y


def test_parts_keep_their_attributes_and_norms_stay_in_float(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = Reading().eval(), torch.randn(64, 8)
    made = lp.export(module, x, tmp_path / "r.lpx", runtimes="parts", precisions=["fp32", "int8"], rounds=0)
    for variant, tolerance in (("parts-fp32", 1e-5), ("parts-int8", 0.02)):
        entry = made.manifest["variants"][variant]
        assert entry["passed"], entry["reason"]
        found = lp.load_artifact(made.path, variant, module=Reading())(x[:5])
        torch.testing.assert_close(found, module(x[:5]).detach(), atol=tolerance, rtol=tolerance)
    assert made.manifest["variants"]["parts-int8"]["error"] > made.manifest["variants"]["parts-fp32"]["error"]


def test_auto_falls_back_and_says_so(wild: Wild, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a compiler in reach, a module without exportable parts ends as a smaller file."""
    monkeypatch.setattr("shutil.which", lambda name: None)
    made = lp.export(wild, torch.randn(4, 8), tmp_path / "p.lpx", precisions=["fp32"], rounds=0)
    assert made.best == "parts-fp32"
    assert "cannot trace Wild.forward" in made.manifest["left_out"]["the whole module"]

    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(8))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale if x.sum() > 0 else x

    made = lp.export(Alone(), torch.randn(4, 8), tmp_path / "a.lpx", precisions=["fp32"], rounds=0)
    assert made.best == "stored-fp32"
    assert "no part of Alone can be exported either" in made.manifest["left_out"]["parts"]
    assert "needs a C++ compiler" in made.manifest["left_out"]["compile"]
    assert "no claim of speed" in str(made)


def test_stored_int8_is_smaller_and_loads_into_a_prepared_module(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)).eval(), torch.randn(8, 64)
    prepare(module)
    calibrate(module, describe_call(module, (x,)), [[x]])
    made = lp.export(module, x, tmp_path / "s.lpx", runtimes="stored", precisions=["fp32", "int8"], rounds=0)
    entries = made.manifest["variants"]
    assert entries["stored-int8"]["bytes"] < 0.3 * entries["stored-fp32"]["bytes"]
    found = lp.load_artifact(made.path, "stored-int8", module=module)(x)
    torch.testing.assert_close(found, module(x).detach(), atol=1e-5, rtol=1e-5)
    blank = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    found = lp.load_artifact(made.path, "stored-fp32", module=blank)(x)
    wanted = module(x).detach()
    assert float((found - wanted).norm() / wanted.norm()) < 0.05
    with pytest.raises(ValueError, match="int8 weights need a prepared module"):
        lp.load_artifact(made.path, "stored-int8", module=blank)
    with pytest.raises(ValueError, match="does not fit the weights"):
        lp.load_artifact(made.path, "stored-fp32", module=nn.Linear(2, 2))


class Graph:
    """A batch that is no structure of tensors, as graph libraries have them."""

    def __init__(self, nodes: Tensor, edges: Tensor) -> None:
        self.nodes, self.edges = nodes, edges


class Passing(nn.Module):
    """A layer on nodes, one on what comes over edges, in a block of their own; a head on the whole graph."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.ModuleDict({"own": nn.Linear(8, 16), "twice": nn.Linear(16, 16)})
        self.head = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))

    def forward(self, graph: Graph | Nodes) -> Tensor:
        hidden = self.block["own"](graph.nodes)
        for _ in range(2):
            hidden = hidden.index_add(0, graph.edges[1], self.block["twice"](hidden)[graph.edges[0]])
        return self.head(hidden.mean(0, keepdim=True))


@dataclass
class Nodes:
    """The same as a dataclass, whose size is another one in each batch."""

    nodes: Tensor
    edges: Tensor


class Wrapped(nn.Module):
    """Its one child could be traced for the size of one graph."""

    def __init__(self) -> None:
        super().__init__()
        self.passing = Passing()

    def forward(self, graph: Graph | Nodes) -> Tensor:
        return self.passing(graph)


def test_parts_of_a_module_on_graphs_take_graphs_of_other_sizes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, graph = Wrapped().eval(), Nodes(torch.randn(5, 8), torch.arange(14).remainder(5).view(2, 7))
    made = lp.export(module, {"graph": graph}, tmp_path / "g.lpx", runtimes="parts", precisions=["fp32"], rounds=0)
    entry = made.manifest["variants"]["parts-fp32"]
    assert entry["passed"], entry["reason"]
    assert entry["notes"][0].startswith("passing.block.own, passing.head (")
    other = Nodes(torch.randn(9, 8), torch.arange(24).remainder(9).view(2, 12))
    found = lp.load_artifact(made.path, module=module)(other)
    torch.testing.assert_close(found, module(other).detach(), atol=1e-5, rtol=1e-5)


def test_a_batch_that_cannot_be_taken_apart_names_what_can_be_exported(tmp_path: Path) -> None:
    graph = Graph(torch.randn(5, 8), torch.randint(0, 5, (2, 7)))
    with pytest.raises(
        ValueError, match=r"graph is a Graph; .* such as export\(module\.block\.own, inputs, path\): block\.own, head\."
    ):
        lp.export(Passing(), {"graph": graph}, tmp_path / "g.lpx")


@pytest.mark.slow
def test_torch_compile_serves_what_has_branches(wild: Wild, tmp_path: Path) -> None:
    x = torch.randn(6, 8)
    made = lp.export(wild, x, tmp_path / "c.lpx", runtimes="compile", precisions=["fp32"], rounds=0)
    assert made.best == "compile-fp32", made.manifest["variants"]
    found = lp.load_artifact(made.path, module=Wild())(x)
    torch.testing.assert_close(found, wild(x).detach(), atol=1e-4, rtol=1e-4)
