"""``lightning-perf export``: a config and a checkpoint become a folder; mistakes are named before anything is built."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import lightning_perf as lp
from lightning_perf.cli import main
from tests.recipes.idx_files import write_files

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "recipes/image_classification/baseline.yaml")
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
        main([*words, "--ignore", "net.stem.0", *QUIET, *data])
    assert done.value.code == 0, capsys.readouterr().err
    manifest = json.loads(Path("q.lpx/manifest.json").read_text())
    assert manifest["variants"]["onnxruntime-int8"]["passed"], manifest["variants"]["onnxruntime-int8"]["reason"]
    assert any("left in float: net.stem.0, because it is ignored" in note for note in manifest["notes"])


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_becomes_a_folder(data: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    from recipes.image_classification.module import ImageClassifier

    torch.manual_seed(5)
    module = ImageClassifier()
    torch.save({"state_dict": module.state_dict(), "pytorch-lightning_version": "2.5.0", "callbacks": {}}, "best.ckpt")
    words = ["export", "--config", CONFIG, "--ckpt_path", "best.ckpt", "--output", "m.lpx", "--runtimes", "onnxruntime"]
    with pytest.raises(SystemExit) as done:
        main([*words, "--precisions", "fp32", "int8", "--rounds", "0", "--json", "r.json", *QUIET, *data])
    assert done.value.code == 0
    assert "the fastest that passed for one sample is onnxruntime-" in capsys.readouterr().out
    manifest = json.loads(Path("m.lpx/manifest.json").read_text())
    assert set(manifest["variants"]) == {"onnxruntime-fp32", "onnxruntime-int8"}
    assert manifest["metric"] == pytest.approx(manifest["variants"]["onnxruntime-fp32"]["metric"])
    assert Path("r.json").is_file()
    x = torch.randn(3, 1, 28, 28)
    found = lp.load_artifact("m.lpx", "onnxruntime-fp32")(x)
    torch.testing.assert_close(found, module.eval()(x).detach(), atol=1e-4, rtol=1e-4)


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
