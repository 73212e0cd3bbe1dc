"""Where the images come from: idx files on disk, their download, and scikit-learn's digits in their place."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import importlib.util
import math
import os
import struct
import urllib.request
import uuid
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import wrap_file
from torch import Tensor

URL = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
PREFIX = {"train": "train", "test": "t10k"}
CLASSES = 10

# SHA-256 of the decompressed files: the same for every compression of them, such as upstream's and Debian's.
SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


class Unreachable(Exception):
    """The server of the dataset did not answer, or refused."""


def cache_folder() -> Path:
    """The folder for downloads when the user names none, under the user's cache directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fashion-mnist"


def find(folders: Sequence[Path]) -> Path | None:
    """The first folder that holds all four files, compressed or not."""
    for folder in folders:
        if all(_path(folder, name) is not None for name in SHA256):
            return folder
    return None


def read(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images (N, H, W) uint8 and labels (N,) int64 of part "train" or "test" of a folder that `find` returned.

    Raises:
        ValueError: a file is damaged, or images and labels do not belong together.
    """
    images = _read_idx(folder, f"{PREFIX[part]}-images-idx3-ubyte", dims=3)
    labels = _read_idx(folder, f"{PREFIX[part]}-labels-idx1-ubyte", dims=1)
    if len(images) != len(labels):
        raise ValueError(f"{folder} has {len(images)} {part} images but {len(labels)} labels: replace both files.")
    if len(labels) and int(labels.max()) >= CLASSES:
        raise ValueError(
            f"{folder} has the {part} label {int(labels.max())}, but the {CLASSES} classes of Fashion-MNIST are "
            f"0 to {CLASSES - 1}: is it another dataset?"
        )
    return images, labels.long()


def download(folder: Path) -> None:
    """Fetch what `folder` lacks of the four files from the dataset's repository, each checked and then put in place.

    Raises:
        Unreachable: the server did not answer.
        RuntimeError: a transfer broke off, or what arrived is not the published file.
    """
    for name in SHA256:
        if _path(folder, name) is None:
            _download_file(folder, name)


def has_digits() -> bool:
    """Whether scikit-learn is installed, without importing it."""
    return importlib.util.find_spec("sklearn") is not None


def digits(part: str) -> tuple[Tensor, Tensor]:
    """scikit-learn's bundled handwritten digits in the same form: images (N, 28, 28) uint8 and labels (N,) int64.

    The 8 x 8 pixels of 17 grey levels are tripled in both directions and framed with two pixels of background. Part
    "test" is the last 360 of the 1797 images, "train" the rest.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
    """
    from sklearn.datasets import load_digits

    rows, target = load_digits(return_X_y=True)
    pixels = (torch.from_numpy(rows).reshape(-1, 8, 8) * (255 / 16)).round().to(torch.uint8)
    images = torch.zeros(len(pixels), 28, 28, dtype=torch.uint8)
    images[:, 2:26, 2:26] = pixels.repeat_interleave(3, dim=1).repeat_interleave(3, dim=2)
    labels = torch.from_numpy(target).long()
    chosen = slice(-360, None) if part == "test" else slice(None, -360)
    return images[chosen], labels[chosen]


def _path(folder: Path, name: str) -> Path | None:
    for candidate in (folder / f"{name}.gz", folder / name):
        if candidate.is_file():
            return candidate
    return None


def _payload(path: Path) -> bytes:
    if path.suffix != ".gz":
        return path.read_bytes()
    try:
        with gzip.open(path) as stream:
            return stream.read()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it or replace it.") from error


def _read_idx(folder: Path, name: str, dims: int) -> Tensor:
    """One idx file as a uint8 tensor: big-endian magic (0x08 for bytes, dimensions), sizes, then the bytes."""
    path = _path(folder, name)
    assert path is not None, f"{name} is not in {folder}: find() comes first"
    data = _payload(path)
    start = 4 * (1 + dims)
    header = struct.unpack_from(f">{1 + dims}I", data) if len(data) >= start else (0,)
    if header[0] != 0x0800 + dims:
        raise ValueError(f"{path} is not an idx file of bytes in {dims} dimension(s): delete it or replace it.")
    shape = header[1:]
    if len(data) - start != math.prod(shape):
        raise ValueError(
            f"{path} announces {' x '.join(map(str, shape))} bytes but holds {len(data) - start}: "
            "delete it or replace it."
        )
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)[start:].reshape(shape)


def _download_file(folder: Path, name: str) -> None:
    url = f"{URL}{name}.gz"
    try:
        response = urllib.request.urlopen(url, timeout=15)
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(f"{url}: {error}") from error
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f".{uuid.uuid4().hex}.{name}.gz"
    try:
        with response:
            _save(response, unfinished, url)
        _check(unfinished, name, url)
        unfinished.replace(folder / f"{name}.gz")
    finally:
        unfinished.unlink(missing_ok=True)


def _save(response: http.client.HTTPResponse, target: Path, url: str) -> None:
    total = response.length
    console = Console(stderr=True)
    label = url.rpartition("/")[2]
    with target.open("wb") as file, wrap_file(response, total or 0, description=label, console=console) as stream:
        while True:
            try:
                chunk = stream.read(1 << 18)
            except (ConnectionError, TimeoutError, http.client.HTTPException) as error:
                raise RuntimeError(f"{url}: the transfer broke off ({error}). Run again.") from error
            if not chunk:
                break
            file.write(chunk)
        received = file.tell()
    if total is not None and received != total:
        raise RuntimeError(f"{url}: the transfer broke off after {received} of {total} bytes. Run again.")


def _check(path: Path, name: str, url: str) -> None:
    expected = SHA256[name]
    try:
        found = hashlib.sha256(_payload(path)).hexdigest()
    except ValueError:
        found = "not a gzip file"
    if found != expected:
        raise RuntimeError(
            f"{url}: what arrived is not the published file (SHA-256 of the content: {found}, expected {expected}). "
            "Run again; if it stays so, something between here and the server changes files: get the four files by "
            "another way, or pass download=False."
        )
