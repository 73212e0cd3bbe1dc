"""Where Fashion-MNIST comes from when it is not on disk: the download, and the digits in its place."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import sys
import threading
import warnings
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from recipes.image_classification import files
from recipes.image_classification.data import DIGITS, FashionMNISTData
from recipes.image_classification.module import ImageClassifier
from tests.recipes.idx_files import NAMES, idx, ready, rows, small_data, write_files

# --- download ---------------------------------------------------------------------------------------------------------


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


class BreaksOff(Handler):
    """Announces the whole file and sends half of it."""

    def do_GET(self) -> None:
        content = Path(self.translate_path(self.path)).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])


@contextlib.contextmanager
def serving(folder: Path, monkeypatch: pytest.MonkeyPatch, handler: type[Handler] = Handler) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    monkeypatch.setattr(files, "URL", f"http://127.0.0.1:{server.server_port}/")
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def published(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to serve, whose contents are the expected ones."""
    arrays = write_files(nowhere / "server")
    monkeypatch.setattr(files, "SHA256", {name: hashlib.sha256(idx(arrays[name])).hexdigest() for name in NAMES})
    return nowhere / "server"


@pytest.mark.parametrize("folder", ["cache/fashion-mnist", "root"])
def test_download_lands_in_root_or_cache(nowhere: Path, published: Path, monkeypatch: Any, folder: str) -> None:
    root = nowhere / "root" if folder == "root" else None
    with serving(published, monkeypatch):
        data = ready(small_data(root), "fit", "test")
    assert sorted(p.name for p in (nowhere / folder).iterdir()) == sorted(f"{name}.gz" for name in NAMES)
    assert torch.equal(files.read(nowhere / folder, "train")[0], files.read(published, "train")[0])
    assert len(rows(data.train_set)) == 50
    again = ready(small_data(root), "fit")  # the server is gone, the files stay
    assert rows(again.train_set) == rows(data.train_set)


def test_download_fetches_only_what_is_missing(nowhere: Path, published: Path, monkeypatch: Any) -> None:
    write_files(nowhere / "root")
    (nowhere / "root" / f"{NAMES[2]}.gz").unlink()
    for name in NAMES[:2] + NAMES[3:]:
        (published / f"{name}.gz").unlink()
    with serving(published, monkeypatch):
        ready(small_data(nowhere / "root"), "test")
    assert files.find([nowhere / "root"]) == nowhere / "root"


def test_recompressed_file_is_accepted(nowhere: Path, published: Path, monkeypatch: Any) -> None:
    path = published / f"{NAMES[0]}.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), compresslevel=1, mtime=7))
    with serving(published, monkeypatch):
        ready(small_data(nowhere / "root"))
    assert files.find([nowhere / "root"]) == nowhere / "root"


@pytest.mark.parametrize("content", [b"<html>sign in</html>", gzip.compress(b"other")], ids=["text", "gzip"])
def test_wrong_content_is_refused_and_not_kept(
    nowhere: Path, published: Path, monkeypatch: Any, content: bytes
) -> None:
    (published / f"{NAMES[1]}.gz").write_bytes(content)
    with (
        serving(published, monkeypatch),
        pytest.raises(RuntimeError, match=rf"{NAMES[1]}.gz: what arrived is not the published file.*download=False"),
    ):
        ready(small_data(nowhere / "root"))
    assert [p.name for p in (nowhere / "root").iterdir()] == [f"{NAMES[0]}.gz"]


def test_broken_transfer_is_refused_and_not_kept(nowhere: Path, published: Path, monkeypatch: Any) -> None:
    with (
        serving(published, monkeypatch, BreaksOff),
        pytest.raises(RuntimeError, match=rf"{NAMES[0]}.gz: the transfer broke off.*Run again"),
    ):
        ready(small_data(nowhere / "root"))
    assert list((nowhere / "root").iterdir()) == []


# --- digits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("download", "reason"), [(False, "download=False"), (True, "http://127.0.0.1")])
def test_digits_take_over_and_say_so_once(nowhere: Path, download: bool, reason: str) -> None:
    data = FashionMNISTData(root=str(nowhere / "root"), download=download)
    with pytest.warns(UserWarning, match=rf"none of {nowhere}/root.*{reason}.*scikit-learn's handwritten digits"):
        ready(data, "fit")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.setup("test")
    assert [len(rows(s)) for s in (data.train_set, data.val_set, data.test_set)] == [1257, 180, 360]
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (128, 1, 28, 28)
    assert set(labels.tolist()) == set(range(10))
    assert not (nowhere / "root").exists()


def test_digits_fit_with_the_plain_trainer(nowhere: Path) -> None:
    data = FashionMNISTData(download=False)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        limit_train_batches=2,
        limit_val_batches=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    with pytest.warns(UserWarning, match="digits"):
        trainer.fit(ImageClassifier(), data)
    assert {"train_loss", "val_loss", "val_acc"} <= set(trainer.callback_metrics)


def test_digits_are_tripled_and_framed() -> None:
    from sklearn.datasets import load_digits

    images, labels = files.digits("train")
    pixels, target = load_digits(return_X_y=True)
    original = pixels[0].reshape(8, 8)
    for i in range(28):
        for j in range(28):
            inside = 2 <= i < 26 and 2 <= j < 26
            expected = original[(i - 2) // 3][(j - 2) // 3] / 16 * 255 if inside else 0
            assert abs(images[0, i, j].item() - expected) <= 0.5
    assert labels[0] == target[0]
    grey = images.double() / 255
    assert (grey.mean().item(), grey.std().item()) == pytest.approx(DIGITS, abs=1e-4)


def test_without_scikit_learn_every_way_out_is_named(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ModuleNotFoundError) as caught:
        ready(FashionMNISTData(download=False))
    for way in ("root", "dataset-fashion-mnist", "download=True", "pip install scikit-learn"):
        assert way in str(caught.value)
