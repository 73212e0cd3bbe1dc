"""Small idx files of random images, and the data module on them."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recipes.image_classification import files
from recipes.image_classification.data import FASHION_MNIST, FashionMNISTData

NAMES = list(files.SHA256)


def idx(array: Tensor) -> bytes:
    return struct.pack(f">{1 + array.dim()}I", 0x0800 + array.dim(), *array.shape) + bytes(array.flatten().tolist())


def write_files(folder: Path, train: int = 60, test: int = 20, compress: bool = True) -> dict[str, Tensor]:
    """Four files of random images; the labels of image i is i % 10, so that a mix-up of rows shows."""
    generator = torch.Generator().manual_seed(1)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for prefix, count in (("train", train), ("t10k", test)):
        arrays[f"{prefix}-images-idx3-ubyte"] = torch.randint(0, 256, (count, 28, 28), generator=generator)
        arrays[f"{prefix}-labels-idx1-ubyte"] = torch.arange(count) % 10
    for name, array in arrays.items():
        if compress:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (folder / name).write_bytes(idx(array))
    return arrays


def small_data(root: Path | None, **kwargs: Any) -> FashionMNISTData:
    arguments: dict[str, Any] = {"batch_size": 16, "eval_batch_size": 16, "val_size": 10, **kwargs}
    return FashionMNISTData(root=str(root) if root else None, **arguments)


def ready(data: FashionMNISTData, *stages: str) -> FashionMNISTData:
    data.prepare_data()
    for stage in stages or ("fit",):
        data.setup(stage)
    return data


def rows(dataset: Any) -> list[bytes]:
    """The raw images of a dataset, as hashable values."""
    return [
        ((image * FASHION_MNIST[1] + FASHION_MNIST[0]) * 255).round().byte().numpy().tobytes() for image, _ in dataset
    ]
