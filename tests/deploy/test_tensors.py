"""The file of tensors against safetensors itself, and damaged ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

from lightning_perf.deploy.tensors import load_tensors, save_tensors

TENSORS = {
    "a": torch.randn(3, 4),
    "b": torch.arange(-3, 3, dtype=torch.int8),
    "c": torch.randn(2, 2).bfloat16(),
    "scalar": torch.tensor(2.5),
    "empty": torch.empty(0, 4),
    "flag": torch.tensor([True, False]),
}


def test_both_ways_with_safetensors(tmp_path: Path) -> None:
    save_tensors(TENSORS, tmp_path / "ours")
    safetensors.torch.save_file(TENSORS, tmp_path / "theirs")
    for found in (
        safetensors.torch.load_file(tmp_path / "ours"),
        load_tensors(tmp_path / "theirs"),
        load_tensors(tmp_path / "ours"),
    ):
        assert found.keys() == TENSORS.keys()
        for name, tensor in TENSORS.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    save_tensors(TENSORS, path)
    whole = path.read_bytes()
    for content in (whole[:-3], whole[:20], b"", b"\xff" * 40):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="no file of tensors or damaged"):
            load_tensors(path)


def test_a_dtype_that_the_file_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"z is torch\.complex64, which the file cannot hold"):
        save_tensors({"z": torch.zeros(1, dtype=torch.complex64)}, tmp_path / "x")
