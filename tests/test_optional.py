"""The wording of a missing optional dependency."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightning_perf._optional import require


def test_an_installed_module_is_returned() -> None:
    assert require("json", extra="report", purpose="this test") is json


def test_a_missing_module_is_named_with_its_purpose_and_its_fix() -> None:
    with pytest.raises(ImportError) as raised:
        require("no_such_module.part", extra="report", purpose="the plots of a report")
    assert str(raised.value) == (
        "no_such_module is not installed; it is needed for the plots of a report: pip install 'lightning-perf[report]'"
    )


def test_a_broken_module_keeps_its_own_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_installed.py").write_text("import something_it_needs_itself\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="No module named 'something_it_needs_itself'"):
        require("half_installed", extra="report", purpose="this test")
