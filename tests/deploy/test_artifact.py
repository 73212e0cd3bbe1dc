"""Artefact folders: what is in them, what opens them, and every kind of damage that is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_perf.deploy import serve
from lightning_perf.deploy.artifact import Artifact, new_folder
from lightning_perf.deploy.load import open_artifact
from lightning_perf.deploy.pipeline import write_artifact
from lightning_perf.deploy.source import NotExportable
from tests.deploy.conftest import Named, Residual, source_of


def test_every_variant_computes_the_module(exported: Artifact, toy: Residual) -> None:
    x = torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(7))
    wanted = toy(x).detach()
    assert set(exported.manifest["variants"]) >= {
        "onnxruntime-fp32",
        "onnxruntime-int8",
        "openvino-fp32",
        "openvino-int8",
    }
    for name, entry in exported.manifest["variants"].items():
        assert entry["passed"], entry["reason"]
        limit = {"fp32": 1e-5, "bf16": 0.03, "int8": 0.08}[entry["precision"]]
        found = open_artifact(exported.path, name, threads=1)(x)
        assert isinstance(found, torch.Tensor)
        assert float((found - wanted).norm() / wanted.norm()) < limit, name


def test_int8_files_are_about_a_quarter_and_differ_from_float(exported: Artifact, toy: Residual) -> None:
    weights = sum(p.numel() for p in toy.parameters())
    variants = exported.manifest["variants"]
    model = exported.path / "onnxruntime-int8" / "model.onnx"
    assert variants["onnxruntime-int8"]["error"] > 1e-4
    assert weights < model.stat().st_size < 4 * weights


def test_report_and_ranking_name_every_variant(exported: Artifact) -> None:
    assert exported.report is not None
    assert set(exported.report.variants) == {"eager fp32", *exported.manifest["variants"]}
    assert set(exported.manifest["ranking"]) == set(exported.manifest["variants"])
    assert exported.manifest["best"]["seconds_b1_t1"] == exported.manifest["ranking"][0] == exported.best
    assert "onnxruntime-bf16" in exported.manifest["left_out"]
    assert "no bfloat16 kernels" in str(exported)


def test_arrays_in_arrays_out(folder: Path, toy: Residual) -> None:
    x = np.zeros((2, 3, 12, 12), np.float32)
    found = open_artifact(folder, "onnxruntime-fp32")(x)
    assert isinstance(found, np.ndarray)
    np.testing.assert_allclose(found, toy(torch.from_numpy(x)).detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("variant", ["onnxruntime-fp32", "openvino-fp32"])
def test_calls_of_changing_sizes_do_not_disturb_each_other(folder: Path, toy: Residual, variant: str) -> None:
    """Small inputs are copied, large ones bound, and results kept: none may be written over by a later call."""
    model = open_artifact(folder, variant, threads=1)
    generator = torch.Generator().manual_seed(3)
    batches = [torch.randn(size, 3, 12, 12, generator=generator) for size in (1, 1, 4, 60, 60, 2, 61, 1, 4)]
    batches.append(torch.randn(12, 12, 3, 2, generator=generator).permute(3, 2, 0, 1))
    found = [model(batch) for batch in batches]
    served = serve.load(folder, variant, threads=1)
    arrays = [served(batch.numpy()) for batch in batches]
    for batch, ours, array in zip(batches, found, arrays, strict=True):
        torch.testing.assert_close(ours, toy(batch).detach(), rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(array, ours.numpy())


def test_read_only_inputs_and_several_threads(folder: Path, toy: Residual) -> None:
    """Arrays of a file or of another library may be read-only; calls from several threads wait for each other."""
    model = serve.load(folder, "openvino-fp32", threads=1)
    large = torch.randn(60, 3, 12, 12, generator=torch.Generator().manual_seed(5)).numpy()
    large.flags.writeable = False
    np.testing.assert_allclose(model(large), toy(torch.tensor(large)).detach(), rtol=1e-4, atol=1e-4)
    singles = [large[index : index + 1] for index in range(60)]
    with ThreadPoolExecutor(4) as workers:
        for found, index in zip(workers.map(model, singles * 4), list(range(60)) * 4, strict=True):
            np.testing.assert_allclose(found, toy(torch.tensor(singles[index])).detach(), rtol=1e-4, atol=1e-4)


def test_what_openvino_lacks_leaves_the_other_runtimes(tmp_path: Path) -> None:
    class Determinant(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.det(x)

    source = source_of(Determinant(), torch.randn(4, 3, 3))
    made = write_artifact(
        source, tmp_path / "d.lpx", runtimes=["onnxruntime", "openvino"], precisions=["fp32"], rounds=0
    )
    assert list(made.manifest["variants"]) == ["onnxruntime-fp32"]
    assert "OpenVINO cannot take it" in made.manifest["left_out"]["openvino-fp32"]


SERVE = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "lightning", "lightning_perf", "onnx"}:
            raise ModuleNotFoundError(f"{name} is blocked here", name=name)
sys.meta_path.insert(0, Blocker())
sys.path.insert(0, sys.argv[1])
import numpy as np
import serve
x = np.load(sys.argv[2])
for name in ("onnxruntime-int8", "openvino-int8", None):
    np.save(f"{sys.argv[3]}/{name}.npy", serve.load(sys.argv[1], name, threads=1)(x))
with serve.Pool(sys.argv[1], [[0], [0]], "onnxruntime-fp32") as pool:
    np.save(f"{sys.argv[3]}/pool.npy", np.concatenate(pool.map([x[:1], x[1:]])))
assert "torch" not in sys.modules
"""


@pytest.mark.parametrize("layer", [nn.Linear(64, 4), nn.Conv1d(64, 4, 1)], ids=["linear", "conv"])
def test_bytes_do_not_saturate(layer: nn.Linear | nn.Conv1d, tmp_path: Path) -> None:
    """255 * 127 + 255 * 127 does not fit into the 16 bits in which processors without VNNI add: half of it would be lost."""
    torch.nn.init.ones_(layer.weight)
    torch.nn.init.zeros_(cast(Tensor, layer.bias))
    x = torch.ones(3, 64) if isinstance(layer, nn.Linear) else torch.ones(3, 64, 5)
    write_artifact(
        source_of(nn.Sequential(layer), x), tmp_path / "a.lpx", runtimes=["onnxruntime"], precisions=["int8"], rounds=0
    )
    found = open_artifact(tmp_path / "a.lpx", "onnxruntime-int8")(x)
    torch.testing.assert_close(found, torch.full_like(found, 64.0), rtol=0.01, atol=0)


def test_serves_without_torch(folder: Path, toy: Residual, tmp_path: Path) -> None:
    """The loader in the folder, in a process where torch and this package cannot be imported."""
    x = np.random.default_rng(0).standard_normal((3, 3, 12, 12)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    command = [sys.executable, "-S", "-c", SERVE, str(folder), str(tmp_path / "x.npy"), str(tmp_path)]
    paths = [path for path in sys.path if path.endswith("site-packages")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": ":".join(paths)})
    assert done.returncode == 0, done.stderr
    wanted = toy(torch.from_numpy(x)).detach().numpy()
    for name in ("onnxruntime-int8", "openvino-int8", "None", "pool"):
        found = np.load(tmp_path / f"{name}.npy")
        assert np.linalg.norm(found - wanted) < 0.08 * np.linalg.norm(wanted), name
    np.testing.assert_allclose(np.load(tmp_path / "pool.npy"), wanted, atol=1e-5)


SIGNALS = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import numpy as np
import serve
x = np.zeros((2, 3, 12, 12), np.float32)
models = [serve.load(sys.argv[1], "openvino-int8", threads=1) for _ in range(3)]
before = [model(x) for model in models]
while models:
    models.pop(0)
signal.signal(signal.SIGCHLD, lambda *_: None)
child = os.fork()
if not child:
    os._exit(0)
os.waitpid(child, 0)
"""


def test_signals_arrive_after_sessions_are_gone(folder: Path) -> None:
    """OpenVINO's cores leave a freed stack to the handlers of signals, if there are several of them."""
    done = subprocess.run([sys.executable, "-c", SIGNALS, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, f"{done.returncode} {done.stderr}"


def test_a_missing_runtime_names_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ImportError, match=r"openvino is not installed.*lightning-perf\[deploy\]"):
        serve.load(folder, "openvino-fp32")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"onnxruntime is not installed.*lightning-perf\[deploy\]"):
        write_artifact(source_of(nn.Linear(2, 2), torch.ones(2, 2)), folder.parent / "no", runtimes="onnxruntime")


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy.lpx"))


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("name", ["onnxruntime-int8/model.onnx", "openvino-int8/model.bin", "serve.py", "report.json"])
def test_one_flipped_byte_is_refused(copied: Path, name: str) -> None:
    flip(copied / name, 100)
    with pytest.raises(serve.ArtifactError, match=f"{name}.*checksum"):
        open_artifact(copied)


def test_every_flipped_byte_of_the_manifest_is_refused(copied: Path) -> None:
    """Blanks between the fields carry nothing and may change; no other byte may."""
    manifest = copied / serve.MANIFEST
    whole = manifest.read_bytes()
    for position in range(0, len(whole), 37):
        flip(manifest, position)
        if _reads_the_same(manifest.read_bytes(), whole):
            continue
        with pytest.raises(serve.ArtifactError):
            serve.read_manifest(copied)
        manifest.write_bytes(whole)


def _reads_the_same(content: bytes, whole: bytes) -> bool:
    try:
        return json.loads(content) == json.loads(whole)
    except ValueError:
        return False


def test_truncated_missing_and_foreign_folders_are_refused(copied: Path, tmp_path: Path) -> None:
    model = copied / "onnxruntime-fp32" / "model.onnx"
    model.write_bytes(model.read_bytes()[:-10])
    with pytest.raises(serve.ArtifactError, match="truncated"):
        open_artifact(copied)
    model.unlink()
    with pytest.raises(serve.ArtifactError, match="is missing"):
        open_artifact(copied)
    with pytest.raises(serve.ArtifactError, match=r"is no artefact: it has no manifest\.json"):
        open_artifact(tmp_path)


def rewritten(copied: Path, **changes: object) -> None:
    """Change the manifest and give it a checksum that fits: an attacker, or another version."""
    manifest = json.loads((copied / serve.MANIFEST).read_text()) | changes
    manifest["sha256"] = serve.manifest_digest(manifest)
    (copied / serve.MANIFEST).write_text(json.dumps(manifest))


def test_another_version_is_refused(copied: Path) -> None:
    rewritten(copied, format=serve.FORMAT + 1)
    with pytest.raises(serve.ArtifactError, match="is of format 2 and this loader reads 1"):
        open_artifact(copied)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a\\..\\b", "C:/x"])
def test_paths_may_not_leave_the_folder(copied: Path, name: str) -> None:
    rewritten(copied, files={name: {"bytes": 1, "sha256": ""}})
    with pytest.raises(serve.ArtifactError, match="outside of the folder"):
        open_artifact(copied)


def test_links_may_not_leave_the_folder(copied: Path, tmp_path: Path) -> None:
    model = copied / "onnxruntime-fp32" / "model.onnx"
    shutil.move(model, tmp_path / "elsewhere.onnx")
    model.symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(serve.ArtifactError, match="link that leads out"):
        open_artifact(copied)


def test_unknown_variants_and_wrong_inputs_are_named(folder: Path) -> None:
    with pytest.raises(serve.ArtifactError, match=r"no variant 'tensorrt'; it has \['onnxruntime-fp32'"):
        open_artifact(folder, "tensorrt")
    model = open_artifact(folder, "onnxruntime-fp32")
    with pytest.raises(serve.ArtifactError, match="'x' is float64 and must be float32"):
        model(np.zeros((1, 3, 12, 12)))
    with pytest.raises(
        serve.ArtifactError, match=r"'x' has shape \(1, 3, 12, 13\) and must have \['batch', 3, 12, 12\]"
    ):
        model(torch.zeros(1, 3, 12, 13))
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        model(torch.zeros(1, 3, 12, 12), mask=None)


def test_nested_calls_keep_their_structure(tmp_path: Path) -> None:
    module, x, shift = Named(), torch.randn(4, 6), {"a": torch.randn(4, 4)}
    made = write_artifact(
        source_of(module, x, scale=2.0, shift=shift),
        tmp_path / "named.lpx",
        runtimes="onnxruntime",
        precisions=["fp32"],
        rounds=0,
    )
    model = open_artifact(made.path)
    found = model(x[:3], 2.0, shift={"a": shift["a"][:3]})
    wanted = module(x[:3], 2.0, shift={"a": shift["a"][:3]})
    assert found["note"] == "kept"
    assert isinstance(found["parts"], tuple)
    torch.testing.assert_close(found["parts"][1], wanted["parts"][1])
    with pytest.raises(serve.ArtifactError, match=r"scale was 2\.0 when the model was exported and is fixed; got 3\.0"):
        model(x, 3.0, shift=shift)
    with pytest.raises(serve.ArtifactError, match=r"must have the keys \['a'\], got \['b'\]"):
        model(x, 2.0, shift={"b": x})
    with pytest.raises(serve.ArtifactError, match=r"'shift_a' has shape \(3, 4\)"):
        model(x, 2.0, shift={"a": shift["a"][:3]})


def test_a_failed_export_leaves_nothing_behind(tmp_path: Path) -> None:
    class Stubborn(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2 if x.sum() > 0 else x

    with pytest.raises(NotExportable, match="nothing could be exported"):
        write_artifact(source_of(Stubborn(), torch.ones(2, 2)), tmp_path / "gone.lpx", runtimes="onnxruntime")
    assert list(tmp_path.iterdir()) == []


def test_the_older_artefact_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.lpx"
    with new_folder(path) as first:
        (first / serve.MANIFEST).write_text("old")
    with pytest.raises(FileNotFoundError), new_folder(path) as second:
        (second / serve.MANIFEST).write_bytes((path / "half-way").read_bytes())
    assert (path / serve.MANIFEST).read_text() == "old"
    with new_folder(path) as third:
        (third / serve.MANIFEST).write_text("new")
    assert (path / serve.MANIFEST).read_text() == "new"
    assert [item.name for item in tmp_path.iterdir()] == ["a.lpx"]


def test_what_is_no_artefact_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="exists and is no artefact"), new_folder(tmp_path):
        pass
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
