"""Runs in files: who makes which, what waits for what, and what is refused; the reduced protocol of the image runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import channel_accuracy, image_runs, pruning_accuracy
from benchmarks.pruning_runs import Folder, claimed
from lightning_perf.report import Run
from lightning_perf_recipes.image_classification import files

pytest.importorskip("fcntl")


def fitted(done: list[str]) -> Any:
    """A fit that notes what it is asked for."""

    def fit(variant: str, seed: int) -> tuple[Run, dict[str, Any]]:
        done.append(f"{variant} {seed}")
        return Run(variant, seed, quantities={"final_metric": seed + 0.5}), {"shapes": [seed]}

    return fit


def test_a_claim_is_one_holder_s_until_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "a_seed0.json"
    with claimed(path) as first, claimed(path) as second, claimed(path.with_name("b_seed0.json")) as other:
        assert (first, second, other) == (True, False, True)
    assert list(path.parent.iterdir()) == []
    with pytest.raises(RuntimeError, match="died"), claimed(path):
        raise RuntimeError("died")
    with claimed(path) as again:
        assert again
    path.write_text("made")
    with claimed(path) as late:
        assert not late
    assert list(path.parent.iterdir()) == [path]


def test_the_claim_of_a_dead_process_is_nobody_s(tmp_path: Path) -> None:
    """It is killed in the middle of its run; the note stays, and the run is free."""
    path = tmp_path / "a_seed0.json"
    script = (
        "import os, sys, pathlib\n"
        "from benchmarks.pruning_runs import claimed\n"
        "with claimed(pathlib.Path(sys.argv[1])) as mine:\n"
        "    print(mine, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        with claimed(path) as mine:
            assert not mine
        other.kill()
    note = path.with_suffix(".running")
    assert note.read_text() == f"{other.pid}\n"
    with claimed(path) as mine:
        assert mine
    assert not note.exists()


def test_what_another_holds_is_left_and_what_needs_it_waits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, done = Folder(tmp_path), []
    after = {"small": "ours"}
    with claimed(folder.file("ours", 0)):
        folder.run_missing(["dense", "ours", "small"], 2, fitted(done), after)
    assert done == ["dense 0", "dense 1", "ours 1", "small 1"]
    assert "waiting for what it runs: ours seed 0, small seed 0" in capsys.readouterr().out
    folder.run_missing(["dense", "ours", "small"], 2, fitted(done), after)
    assert done[4:] == ["ours 0", "small 0"]
    assert folder.more("ours", 1) == {"shapes": [1]}
    assert [(run.variant, run.seed) for run in folder.runs(["ours", "dense"])] == [
        ("ours", 0), ("ours", 1), ("dense", 0), ("dense", 1)
    ]  # fmt: skip
    folder.run_missing(["dense", "ours", "small"], 2, fitted(done), after)
    assert len(done) == 6


def test_a_run_that_fails_leaves_no_result(tmp_path: Path) -> None:
    def fails(variant: str, seed: int) -> tuple[Run, dict[str, Any]]:
        raise ZeroDivisionError

    folder, done = Folder(tmp_path), []
    with pytest.raises(ZeroDivisionError):
        folder.run_missing(["dense"], 1, fails)
    folder.run_missing(["dense"], 1, fitted(done))
    assert done == ["dense 0"]


def test_a_folder_holds_runs_of_one_protocol(tmp_path: Path) -> None:
    Folder(tmp_path, 6000).run_missing(["dense"], 1, fitted([]))
    assert len(list(Folder(tmp_path, 6000).runs(["dense"]))) == 1
    with pytest.raises(ValueError, match="run on 6000 training images and not on all training images"):
        list(Folder(tmp_path).runs(["dense"]))


def test_both_benchmarks_read_one_dense_run() -> None:
    zeros, channels = (image_runs.usual(name, 6000) for name in ("pruning_accuracy", "channel_accuracy"))
    assert zeros.file("dense", 1) == channels.file("dense", 1)
    assert zeros.file("dense", 1).parts[-2:] == ("pruning_accuracy_6000", "dense_seed1.json")
    assert channels.file("ours 2", 0).parts[-2:] == ("channel_accuracy_6000", "ours_2_seed0.json")
    assert image_runs.usual("channel_accuracy", None).path.name == "channel_accuracy"


def test_the_reduced_protocol_says_so() -> None:
    whole, part = image_runs.usual("pruning_accuracy", None), image_runs.usual("pruning_accuracy", 6000)
    assert image_runs.titled("net", whole) == "net"
    assert image_runs.titled("net", part) == "net, 6,000 training images of 55,000"
    assert image_runs.notes(part)[0].startswith("A reduced protocol: 6,000 of the 55,000 training images (11%)")
    assert "10 epochs over 6,000 training images, batch 128, 46 steps an epoch" in image_runs.notes(part)[0]
    assert image_runs.notes(whole)[0].startswith(
        "Each run: 10 epochs over 55,000 training images, batch 128, 429 steps"
    )


@pytest.mark.parametrize("limit", [127, 55_001])
def test_a_limit_out_of_range_is_refused(limit: int) -> None:
    with pytest.raises(ValueError, match=f"--images {limit} must be from 128, one batch, to 55000"):
        image_runs.images(limit)


def test_other_images_are_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe goes on with digits where it has no Fashion-MNIST; these benchmarks do not."""

    def unreachable(folder: Path) -> None:
        raise files.Unreachable("no network")

    monkeypatch.setattr(files, "find", lambda folders: None)
    monkeypatch.setattr(files, "download", unreachable)
    with pytest.raises(RuntimeError, match="images to fit and not 55000: these are not Fashion-MNIST"):
        image_runs.images(None)


@pytest.mark.skipif(files.find([files.DEBIAN, files.cache_folder()]) is None, reason="Fashion-MNIST is not here")
def test_variants_see_the_same_batches_whatever_they_draw(tmp_path: Path) -> None:
    """``narrow`` draws three nets and more before it trains; the first of its batches are those of ``dense``."""
    folder = Folder(tmp_path, 256)
    short = {"limit_train_batches": 1, "max_epochs": 2}
    seen = {}
    for name in ("dense", "narrow 4"):
        for seed in (0, 1):
            ready = lambda name=name, seed=seed: channel_accuracy.prepared(name, seed, folder)  # noqa: E731
            more = image_runs.trained(name, seed, folder, ready, **short)[1]
            seen[name, seed] = more["batches"], more["order"]
    assert seen["dense", 0] == seen["narrow 4", 0]
    assert seen["dense", 1] == seen["narrow 4", 1]
    assert seen["dense", 0][0] == 2
    assert seen["dense", 0][1] != seen["dense", 1][1]
    run = pruning_accuracy.fit("dense", 0, folder, limit_train_batches=1)[0]
    assert run.value("macs") == channel_accuracy.fit("dense", 0, folder, limit_train_batches=1)[0].value("macs")
