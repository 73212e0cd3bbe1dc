"""Fixtures of the recipes: a machine without data, and one with small files."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from recipes.image_classification import files
from tests.recipes.idx_files import write_files


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without Debian's package, with an empty cache and a server that refuses connections."""
    monkeypatch.setattr(files, "DEBIAN", tmp_path / "debian")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(files, "URL", f"http://127.0.0.1:{port}/")
    return tmp_path


@pytest.fixture
def synthetic(nowhere: Path) -> Path:
    write_files(nowhere / "root")
    return nowhere / "root"
