"""``lightning-perf export``: a config and a checkpoint become a folder; mistakes are named before anything is built."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import lightning_perf as lp
from lightning_perf.cli import export_command, main, quantize_command
from lightning_perf.deploy.gate import TOLERANCE, relative_error
from lightning_perf.quantization import preparation
from tests.recipes.idx_files import write_files

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "recipes/image_classification/baseline.yaml")
QAT = str(ROOT / "recipes/image_classification/qat.yaml")
QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments that point the recipe at a tiny data set."""
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path / "data")
    return [f"--data.root={tmp_path / 'data'}", "--data.val_size=8", "--data.batch_size=4", "--data.eval_batch_size=8"]


@pytest.mark.filterwarnings("ignore")
def test_quantize_exports_what_it_calibrated(data: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["quantize", "--config", CONFIG, "--output", "q.lpx", "--runtimes", "onnxruntime", "--rounds", "0"]
    with pytest.raises(SystemExit) as done:
        main([*words, "--mode", "max", "--ignore", "net.stem.0", *QUIET, *data])
    assert done.value.code == 0, capsys.readouterr().err
    manifest = json.loads(Path("q.lpx/manifest.json").read_text())
    assert manifest["variants"]["onnxruntime-int8"]["passed"], manifest["variants"]["onnxruntime-int8"]["reason"]
    assert any("left in float: net.stem.0, because it is ignored" in note for note in manifest["notes"])
    assert "Metric: val_acc; higher is better, as mode says." in manifest["notes"]


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_becomes_a_folder(data: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    from recipes.image_classification.module import ImageClassifier

    torch.manual_seed(5)
    module = ImageClassifier()
    torch.save({"state_dict": module.state_dict(), "pytorch-lightning_version": "2.5.0", "callbacks": {}}, "best.ckpt")
    words = ["export", "--config", CONFIG, "--ckpt_path", "best.ckpt", "--output", "m.lpx", "--runtimes", "onnxruntime"]
    with pytest.raises(SystemExit) as done:
        main(
            [
                *words,
                "--precisions",
                "fp32",
                "int8",
                "--rounds",
                "0",
                "--mode",
                "max",
                "--json",
                "r.json",
                *QUIET,
                *data,
            ]
        )
    assert done.value.code == 0
    assert "the fastest that passed for one sample is onnxruntime-" in capsys.readouterr().out
    manifest = json.loads(Path("m.lpx/manifest.json").read_text())
    assert set(manifest["variants"]) == {"onnxruntime-fp32", "onnxruntime-int8"}
    assert "Metric: val_acc; higher is better, as mode says." in manifest["notes"]
    assert manifest["metric"] == pytest.approx(manifest["variants"]["onnxruntime-fp32"]["metric"])
    assert Path("r.json").is_file()
    x = torch.randn(3, 1, 28, 28)
    found = lp.load_artifact("m.lpx", "onnxruntime-fp32")(x)
    torch.testing.assert_close(found, module.eval()(x).detach(), atol=1e-4, rtol=1e-4)


class Trained:
    """A checkpoint that a run of the recipe's ``qat.yaml`` wrote, and what its callback's state says."""

    def __init__(self, data: list[str]) -> None:
        few = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=6", "--trainer.logger=false"]
        saver = "--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint"
        words = ["--config", QAT, *QUIET, *few, saver, "--trainer.callbacks.dirpath=kept", *data]
        main(["fit", *words])
        (self.path,) = map(str, Path("kept").glob("*.ckpt"))
        states = torch.load(self.path, weights_only=True)["callbacks"]
        self.state = next(state for key, state in states.items() if key.startswith("QuantizationAwareTraining"))


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The modules that the commands export."""
    modules: list[Any] = []

    def keep(module: Any, *args: Any, **options: Any) -> Any:
        modules.append(module)
        return lp.export(module, *args, **options)

    for command in (export_command, quantize_command):
        monkeypatch.setattr(command, "export", keep)
    return modules


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("command", ["export", "quantize"])
def test_trained_ranges_are_exported(command: str, data: list[str], kept: list[Any]) -> None:
    """Those in the checkpoint, to the last bit; and the artefact computes what the prepared module does."""
    trained = Trained(data)
    words = [command, "--config", QAT, "--ckpt_path", trained.path, "--output", "m.lpx", "--runtimes", "onnxruntime"]
    more = ["--max_drop", "100%"] if command == "quantize" else []
    with pytest.raises(SystemExit) as done:
        main([*words, *more, "--rounds", "0", *QUIET, *data])
    assert done.value.code == 0
    (module,) = kept
    shared = preparation(module)
    assert shared is not None
    theirs = trained.state["ranges"]
    assert theirs["names"] == shared.ranges.names
    for field in ("low", "high", "batches"):
        assert torch.equal(getattr(shared.ranges, field), theirs[field]), field
    assert theirs["batches"].max() == 5, "of 6 batches, 80 % observe"
    manifest = json.loads(Path("m.lpx/manifest.json").read_text())
    assert manifest["variants"]["onnxruntime-int8"]["passed"], manifest["variants"]["onnxruntime-int8"]["reason"]
    assert not any("was not prepared" in note for note in manifest["notes"])
    x = torch.randn(8, 1, 28, 28)
    with torch.no_grad():
        wanted = module.eval()(x)
    found = lp.load_artifact("m.lpx", "onnxruntime-int8")(x)
    assert 0 < relative_error(found, wanted) < TOLERANCE["int8"]


@pytest.mark.filterwarnings("ignore")
def test_trained_ranges_are_not_dropped_in_silence(data: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    trained = Trained(data)
    words = ["--ckpt_path", trained.path, "--output", "m.lpx", "--rounds", "0", *QUIET, *data]
    for command in ("export", "quantize"):
        with pytest.raises(SystemExit) as done:
            main([command, "--config", CONFIG, *words])
        assert done.value.code == 2
        assert "holds the ranges of QuantizationAwareTraining, and the config has no" in capsys.readouterr().err
    with pytest.raises(SystemExit) as done:
        main(["quantize", "--config", QAT, *words, "--ignore", "net.stem.0"])
    assert done.value.code == 2
    assert "holds trained ranges, and what stays in float was decided in training" in capsys.readouterr().err
    assert not Path("m.lpx").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config", "nope.yaml"], "config 'nope.yaml' does not exist"),
        (["--config", CONFIG, "--ckpt_path", "nope.ckpt"], "ckpt_path 'nope.ckpt' does not exist"),
        (["--config", CONFIG, "--runtimes", "tensorrt"], "unknown ['tensorrt']; choose among"),
        (["--config", CONFIG, "--precisions", "fp8"], "unknown ['fp8']; choose among"),
    ],
)
def test_mistakes_are_named(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["export", *words])
    assert done.value.code == 2
    assert message in capsys.readouterr().err
