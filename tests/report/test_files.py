"""Whether a report can be written, without leaving a trace."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lightning_perf.report import UnwritableReportError, check_writable


def test_a_writable_place_is_left_as_it_was(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "report.html"
    assert check_writable(target) == target
    assert check_writable(str(tmp_path / "report.html")) == tmp_path / "report.html"
    assert list(tmp_path.iterdir()) == []


def test_an_existing_report_keeps_its_content(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("old")
    check_writable(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text() == "old"


def test_below_a_file_and_on_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UnwritableReportError, match=r"file/x/report.html': Not a directory\. A report needs a folder"):
        check_writable(tmp_path / "file" / "x" / "report.html")
    with pytest.raises(OSError, match="it is a folder; add a file name") as raised:
        check_writable(tmp_path)
    assert isinstance(raised.value, UnwritableReportError)
    assert raised.value.path == tmp_path


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UnwritableReportError, match="Permission denied"):
        check_writable(tmp_path / "report.html")
    tmp_path.chmod(0o700)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system in which nobody can make files")
def test_a_file_system_that_takes_no_files() -> None:
    with pytest.raises(UnwritableReportError):
        check_writable("/proc/self/report.html")
