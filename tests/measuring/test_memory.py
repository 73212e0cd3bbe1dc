"""Resident memory from a recorded status file and of this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_perf.measuring import memory, peak_rss_bytes, reset_peak_rss, rss_bytes

STATUS = "Name:\tpython\nVmPeak:\t  900000 kB\nVmHWM:\t  345678 kB\nVmRSS:\t  123456 kB\n"


def test_a_recorded_status_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "status").write_text(STATUS)
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "status")
    assert rss_bytes() == 123456 * 1024
    assert peak_rss_bytes() == 345678 * 1024


def test_a_system_without_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "none")
    monkeypatch.setattr(memory, "_CLEAR_REFS", tmp_path / "none")
    assert rss_bytes() is None
    assert not reset_peak_rss()
    peak = peak_rss_bytes()
    assert peak is None or peak > 10_000_000


def test_a_refused_reset_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_CLEAR_REFS", tmp_path)  # a folder: opening it for writing is refused
    assert not reset_peak_rss()


def test_the_peak_forgets_what_was_freed_before_the_reset() -> None:
    block = bytearray(b"x" * 64_000_000)
    del block
    before = peak_rss_bytes()
    if not reset_peak_rss():
        pytest.skip("this system cannot reset the peak of resident memory")
    after, now = peak_rss_bytes(), rss_bytes()
    assert before is not None
    assert after is not None
    assert now is not None
    assert after < before - 30_000_000
    assert abs(after - now) < 16_000_000
