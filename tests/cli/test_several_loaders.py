"""``lightning-perf export`` and ``quantize`` of a module with several loaders for training and for validation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

import lightning_perf as lp
from lightning_perf.cli.export_command import export_config
from lightning_perf.cli.quantize_command import quantize_config
from lightning_perf.deploy.artifact import Artifact


def loader(shift: float) -> DataLoader[Any]:
    return DataLoader(torch.linspace(-1, 1, 16).unsqueeze(1) + shift, batch_size=8)  # pyright: ignore[reportArgumentType]


class TwoTasks(LightningModule):
    """Trains on a dictionary of batches, validates on one loader after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def step(self, batch: Tensor) -> Tensor:
        return nn.functional.mse_loss(self(batch), 3 * batch + 1)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.step(batch["a"]) + self.step(batch["b"])

    def validation_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val_loss", self.step(batch))

    def train_dataloader(self) -> Any:
        return {"a": loader(0.0), "b": loader(2.0)}

    def val_dataloader(self) -> Any:
        return [loader(0.0), loader(2.0)]


CONFIG = f"""
trainer: {{accelerator: cpu, enable_checkpointing: false, enable_progress_bar: false, enable_model_summary: false}}
model: {__name__}.TwoTasks
"""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("command", [export_config, quantize_config])
def test_every_loader_counts(command: Callable[..., Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my.yaml").write_text(CONFIG)
    options: dict[str, Any] = {"runtimes": "onnxruntime", "rounds": 0, "overrides": ["--seed_everything=1"]}
    made = command("my.yaml", None, "m.lpx", metric="val_loss/dataloader_idx_1", **options)
    assert made.manifest["variants"]["onnxruntime-int8"]["passed"], made.manifest["variants"]["onnxruntime-int8"]
    x = torch.linspace(-1, 1, 16).unsqueeze(1) + 2.0
    run = lp.load_artifact("m.lpx", "onnxruntime-fp32")
    losses = [float(nn.functional.mse_loss(run(part), 3 * part + 1)) for part in x.split(8)]
    assert made.manifest["metric"] == pytest.approx(sum(losses) / 2, rel=1e-4)
