"""Tensors in one file without pickle: a length, a JSON header, raw bytes.

It is the layout of safetensors, so that its readers open the file too.
Source: https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPES = {code: dtype for dtype, code in _CODES.items()}
_LARGEST_HEADER = 100_000_000


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors by name.

    Raises:
        ValueError: a dtype that the layout does not know.
    """
    header: dict[str, Any] = {}
    chunks: list[bytes] = []
    offset = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _CODES:
            raise ValueError(f"{name} is {tensor.dtype}, which the file cannot hold; known are {sorted(_DTYPES)}.")
        content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        ends = [offset, offset + len(content)]
        header[name] = {"dtype": _CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": ends}
        chunks.append(content)
        offset += len(content)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the layout aligns the data
    path.write_bytes(b"".join([struct.pack("<Q", len(text)), text, *chunks]))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read what :func:`save_tensors` wrote.

    Raises:
        ValueError: another kind of file, or one that is cut.

    Example::

        >>> save_tensors({"a": torch.arange(3)}, Path("a.safetensors"))
        >>> load_tensors(Path("a.safetensors"))
        {'a': tensor([0, 1, 2])}
    """
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0] if len(content) >= 8 else _LARGEST_HEADER
    try:
        if size >= _LARGEST_HEADER:
            raise ValueError("its header has an impossible length")
        header = json.loads(content[8 : 8 + size])
        found = {}
        for name, item in header.items():
            if name == "__metadata__":
                continue
            begin, end = item["data_offsets"]
            dtype, shape = _DTYPES[item["dtype"]], item["shape"]
            raw = content[8 + size + begin : 8 + size + end]
            if len(raw) != math.prod(shape) * dtype.itemsize:
                raise ValueError(f"{name} is incomplete")
            flat = torch.frombuffer(bytearray(raw), dtype=dtype) if raw else torch.empty(0, dtype=dtype)
            found[name] = flat.reshape(shape)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no file of tensors or damaged: {error}") from error
    return found
