"""AOTInductor packages: compiled once, checked by the gate, opened without the module, bound to one version of torch."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import lightning_perf as lp
from lightning_perf.deploy import inductor
from lightning_perf.deploy.artifact import Artifact
from lightning_perf.deploy.gate import TOLERANCE, relative_error
from lightning_perf.deploy.serve import ArtifactError
from lightning_perf.deploy.source import NotExportable

pytestmark = pytest.mark.skipif(
    not any(shutil.which(name) for name in inductor.COMPILERS),
    reason=f"needs a C++ compiler, and none of {', '.join(inductor.COMPILERS)} is on the path",
)


@pytest.fixture(scope="session")
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).eval()


@pytest.fixture(scope="session")
def package(net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The net in fp32, compiled once."""
    path = tmp_path_factory.mktemp("inductor") / "net.lpx"
    return lp.export(net, torch.randn(8, 16), path, runtimes="inductor", precisions=["fp32"], rounds=0)


def test_a_package_passes_and_computes_the_module(net: nn.Module, package: Artifact) -> None:
    entry = package.manifest["variants"]["inductor-fp32"]
    assert entry["passed"], entry["reason"]
    assert package.best == "inductor-fp32"
    model = lp.load_artifact(package.path)
    before = [parameter.clone() for parameter in net.parameters()]
    for batch in (1, 3, 8, 3):
        x = torch.randn(batch, 16)
        with torch.no_grad():
            assert relative_error(model(x), net(x)) < TOLERANCE["fp32"]
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), before, strict=True))


def test_a_package_of_another_torch_is_refused(package: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    with pytest.raises(ArtifactError, match=r"was compiled by torch .* and this is 9\.9\.9; .* Export again"):
        lp.load_artifact(package.path)


def test_without_a_compiler_it_says_so(net: nn.Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(inductor.shutil, "which", lambda name: None)
    path = tmp_path / "net.lpx"
    with pytest.raises(NotExportable, match=r"a C\+\+ compiler is needed"):
        lp.export(net, torch.randn(8, 16), path, runtimes="inductor", precisions=["fp32"], rounds=0)
    assert not path.exists()
