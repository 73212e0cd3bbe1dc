"""What becomes of a job when one of its processes is told to end, dies, is killed or hangs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.ranks import finish, log_of, start

pytestmark = [pytest.mark.ddp, pytest.mark.slow]  # some ten seconds of processes each: make test-all

WORKER = "tests.strategies.fault_worker"


def test_sigterm_on_one_rank_ends_all_with_a_checkpoint(tmp_path: Path) -> None:
    processes = start(WORKER, tmp_path / "out", 2, "sigterm", "perf_ddp")
    assert finish(processes, 120) == [0, 0]
    for rank in range(2):
        assert "ended by SIGTERM" in log_of(tmp_path / "out", rank).read_text()
    assert (tmp_path / "on_exception.ckpt").exists()


@pytest.mark.parametrize("preset", ["perf_ddp", "perf_ddp_int8"])
def test_a_rank_that_dies_ends_the_job(preset: str, tmp_path: Path) -> None:
    processes = start(WORKER, tmp_path / "out", 2, "die", preset)
    codes = finish(processes, 120)
    assert codes[0] not in (0, None)
    assert codes[1] == 3
    assert f"{preset}: another process of this job has ended" in log_of(tmp_path / "out", 0).read_text()


@pytest.mark.parametrize("preset", ["perf_ddp", "perf_ddp_int8"])
def test_a_rank_that_hangs_ends_the_job_within_the_timeout(preset: str, tmp_path: Path) -> None:
    """The rank that waits gives up after ``timeout`` and says how to wait longer; a launcher then ends the other one."""
    processes = start(WORKER, tmp_path / "out", 2, "hang", preset)
    try:
        assert processes[0].wait(timeout=120) not in (0, None)
        assert processes[1].poll() is None
    finally:
        for process in processes:
            process.kill()
            process.wait()
    text = log_of(tmp_path / "out", 0).read_text()
    assert f"{preset}: another process of this job hangs or is much slower; PerfDDP(timeout=...)" in text


@pytest.mark.parametrize("preset", ["perf_ddp_int8", "perf_local_sgd"])
def test_a_killed_run_resumes_to_where_the_uninterrupted_one_ends(preset: str, tmp_path: Path) -> None:
    """kill -9 in the third epoch; from the checkpoint of the second, every rank ends with the same bits."""
    codes = finish(start(WORKER, tmp_path / "out", 2, "kill", preset), 120)
    assert codes[0] != 0
    assert codes[1] == -9
    assert sorted(path.name for path in (tmp_path / "kill").glob("*.ckpt")) == ["epoch=0.ckpt", "epoch=1.ckpt"]
    assert finish(start(WORKER, tmp_path / "out", 2, "whole+resume", preset), 120) == [0, 0]
    ends = {
        name: torch.load(tmp_path / f"{name}.pt", weights_only=True)
        for name in ("whole0", "whole1", "resume0", "resume1")
    }
    for name in ends["whole0"]:
        for rank in "01":
            assert torch.equal(ends[f"whole{rank}"][name], ends[f"resume{rank}"][name]), (rank, name)
    assert torch.equal(ends["whole0"]["net.0.weight"], ends["whole1"]["net.0.weight"])
