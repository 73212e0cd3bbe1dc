"""What ``lightning-perf export`` and ``quantize`` take a module from: any config of ``fit``, also those that it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel

from lightning_perf.cli import main, restored_cli
from lightning_perf.cli.export_command import restored

CONFIG = """
trainer:
  accelerator: cpu
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
  devices: 2
  strategy:
    class_path: lightning_perf.PerfDDP
    init_args:
      preset: perf_ddp
model: lightning.pytorch.demos.boring_classes.BoringModel
data: lightning.pytorch.demos.boring_classes.BoringDataModule
"""

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A config that trains on two devices, in the working directory."""
    monkeypatch.chdir(tmp_path)
    Path("my.yaml").write_text(CONFIG)
    return "my.yaml"


@pytest.fixture
def checkpoint(config: str) -> str:
    """Weights that are those of no initialisation."""
    module = BoringModel()
    torch.nn.init.constant_(module.layer.weight, 0.25)
    torch.save({"state_dict": module.state_dict(), "pytorch-lightning_version": "2.5.0", "callbacks": {}}, "best.ckpt")
    return "best.ckpt"


def written(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The config that ``fit --print_config`` writes."""
    with pytest.raises(SystemExit):
        main(["fit", "--config", "my.yaml", *words, "--print_config"])
    Path("written.yaml").write_text(capsys.readouterr().out)
    return "written.yaml"


def test_more_processes_are_set_aside_and_said(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    module, _, _ = restored(config, None, [])
    assert module.trainer.world_size == 1
    assert type(module.trainer.strategy).__name__ == "SingleDeviceStrategy"
    said = [line for line in capsys.readouterr().out.splitlines() if "set aside" in line]
    assert len(said) == 1
    assert "trainer.devices=2, trainer.strategy=lightning_perf.PerfDDP" in said[0]


def test_one_process_is_not_worth_a_line(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    restored(config, None, ["--trainer.devices=1", "--trainer.strategy=auto"])
    assert "set aside" not in capsys.readouterr().out


@pytest.mark.parametrize(("devices", "kept"), [([3], True), ("3,", True), ("3", False), ([0, 1], False), (2, False)])
def test_a_device_by_number_stays(devices: Any, kept: bool) -> None:
    assert restored_cli._is_one_index(devices) is kept


def test_a_config_that_fit_wrote(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It holds ``ckpt_path: null``, and with some versions of Lightning ``weights_only: null``."""
    path = written(capsys)
    assert "ckpt_path: null" in Path(path).read_text()
    module, _, _ = restored(path, checkpoint, [])
    assert module.layer.weight.unique().tolist() == [0.25]


def test_its_own_checkpoint_is_taken_and_said(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(capsys, f"--ckpt_path={checkpoint}")
    module, _, _ = restored(path, None, [])
    assert module.layer.weight.unique().tolist() == [0.25]
    assert "the config's own ckpt_path, best.ckpt" in capsys.readouterr().out
    Path(checkpoint).rename("away.ckpt")
    with pytest.raises(ValueError, match=r"ckpt_path 'best.ckpt' in config 'written.yaml' is no file"):
        restored(path, None, [])
    module, _, _ = restored(path, "away.ckpt", [])
    assert module.layer.weight.unique().tolist() == [0.25], "the one of the command line goes before it"
