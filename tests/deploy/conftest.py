"""Toys that are exported once for all tests of this room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_perf.deploy.artifact import Artifact
from lightning_perf.deploy.call import describe_call, frozen_copy
from lightning_perf.deploy.pipeline import write_artifact
from lightning_perf.deploy.source import Source


class Residual(nn.Module):
    """Convolutions, batch norms, a padded strided shortcut, mean pooling, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.conv1, self.norm1 = nn.Conv2d(16, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32)
        self.conv2, self.norm2 = nn.Conv2d(32, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, 5) of images (B, 3, H, W)."""
        x = self.stem(x)
        y = torch.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        shortcut = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, 16))
        return self.head(torch.relu(y + shortcut).mean((2, 3)))


class Named(nn.Module):
    """A forward with keywords, a nested output, and a second entry point."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 4)

    def forward(self, x: Tensor, scale: float = 1.0, *, shift: dict[str, Tensor]) -> dict[str, Any]:
        """A dictionary with a tuple in it."""
        y = self.inner(x) * scale + shift["a"]
        return {"y": y, "parts": (y[:, :2], y[:, 2:]), "note": "kept"}

    def encode(self, x: Tensor) -> Tensor:
        """The other entry point."""
        return self.inner(x).tanh()


def residual() -> Residual:
    """A seeded toy whose batch norms have seen data."""
    torch.manual_seed(0)
    module = Residual()
    with torch.no_grad():
        for _ in range(5):
            module(torch.randn(8, 3, 12, 12))
    return module.eval()


def source_of(module: nn.Module, *args: Any, calibrated: bool = True, **kwargs: Any) -> Source:
    """A float source with a call on the example as calibration."""
    call = describe_call(module, args, kwargs)
    return Source(call, frozen_copy(module), calibration=[call.tensors] if calibrated else ())


@pytest.fixture(scope="session")
def toy() -> Residual:
    """The network behind :func:`exported`."""
    return residual()


@pytest.fixture(scope="session")
def exported(toy: Residual, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The residual toy in both runtimes and all precisions, timed for two rounds."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    source = source_of(toy, torch.randn(8, 3, 12, 12))
    folder = tmp_path_factory.mktemp("deploy") / "toy.lpx"
    made = write_artifact(source, folder, runtimes=["onnxruntime", "openvino"], rounds=2, batches=(1, 4), title="toy")
    torch.set_num_threads(before)
    return made


@pytest.fixture
def folder(exported: Artifact) -> Path:
    """Where the toy lies; do not write there."""
    return exported.path
