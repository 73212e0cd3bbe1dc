"""Runs with ChannelPruning that go on from the middle of an epoch: before a cut, between two, behind; stopped at the cut."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader

import lightning_perf as lp
from tests.contract.modules import images, make

pytest.importorskip("torch_pruning", reason="needs torch-pruning (extra prune)")
EPOCHS, BATCHES = 4, 6
# Every batch is the same one: Lightning starts the order of samples anew within an epoch.
LOADER = DataLoader(ConcatDataset([images(4).dataset] * BATCHES), batch_size=4)


@pytest.fixture
def pl() -> ModuleType:
    import lightning.pytorch

    return lightning.pytorch


def run(
    ns: ModuleType,
    quiet: dict[str, Any],
    kind: str,
    where: Path,
    options: dict[str, Any],
    *others: Any,
    **arguments: Any,
) -> tuple[Any, Any, lp.ChannelPruning]:
    """A fit over four epochs, with a checkpoint every fourth step; cuts come with epoch 2 (and 3)."""
    ckpt_path = arguments.pop("ckpt_path", None)
    module = make(kind, ns)
    module.net[3].p = 0.0
    pruning = lp.ChannelPruning(0.5, **{"at": 0.3, "round_to": 2, **options})
    saver = ns.callbacks.ModelCheckpoint(where, "{step}", save_top_k=-1, every_n_train_steps=4)
    settings = {**quiet, "enable_checkpointing": True, "max_epochs": EPOCHS, **arguments}
    torch.manual_seed(5 if ckpt_path is None else 6)
    trainer = ns.Trainer(**settings, callbacks=[lp.ExactResume(), *others, pruning, saver])
    trainer.fit(module, LOADER, ckpt_path=ckpt_path)
    return trainer, module, pruning


def assert_same(one: Any, other: Any) -> None:
    """Nested containers of tensors and numbers, bit for bit."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key, value in one.items():
            assert_same(value, other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_same(left, right)
    else:
        assert one == other


def state_of(trainer: Any, module: Any, pruning: lp.ChannelPruning) -> dict[str, Any]:
    """What a run ends with, but for the losses before it was resumed."""
    checkpoint: dict[str, Any] = {}
    pruning.on_save_checkpoint(trainer, module, checkpoint)
    return {
        "weights": dict(module.state_dict()),
        "optimizers": [one.state_dict() for one in trainer.optimizers],
        "schedules": [one.scheduler.state_dict()["_last_lr"] for one in trainer.lr_scheduler_configs],
        "pruning": checkpoint["callbacks"][pruning.state_key],
    }


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("plain", {}),
        ("scheduled", {"steps": 2}),
        ("plain", {"steps": 2, "regularize": 1e-2}),
        ("manual", {"steps": 2}),
    ],
)
def test_a_run_goes_on_from_the_middle_of_an_epoch(
    kind: str, options: dict[str, Any], ns: ModuleType, quiet: dict[str, Any], tmp_path: Path
) -> None:
    """Step 8 is in epoch 1, past ``at`` and before its cut; 16 is in epoch 2, behind the first; 20 in epoch 3.

    12 is the last batch of epoch 1: Lightning goes on with epoch 2 there and does not say that it starts.
    """
    trainer, module, pruning = run(ns, quiet, kind, tmp_path, options)
    whole, cuts = state_of(trainer, module, pruning), pruning.steps
    assert whole["pruning"]["done"] == cuts
    for step, done in ((4, 0), (8, 0), (12, 0), (16, 1), (20, cuts)):
        path = tmp_path / f"step={step}.ckpt"
        saved = torch.load(path, weights_only=True)["callbacks"][pruning.state_key]
        assert saved["done"] == done, step
        again, resumed, its = run(ns, quiet, kind, tmp_path / "again", options, ckpt_path=path)
        assert again.global_step == EPOCHS * BATCHES
        assert_same(state_of(again, resumed, its), whole)
        assert resumed.losses == module.losses[step:]
        assert sum("cut from" in line for line in its.messages) == cuts - done


def test_a_run_limited_by_steps_goes_on(pl: ModuleType, quiet: dict[str, Any], tmp_path: Path) -> None:
    limit = {"max_epochs": -1, "max_steps": EPOCHS * BATCHES}
    whole = run(pl, quiet, "plain", tmp_path, {"steps": 2}, **limit)
    assert whole[2]._done == 2
    for step in (8, 12, 16):
        again = run(
            pl, quiet, "plain", tmp_path / "again", {"steps": 2}, ckpt_path=tmp_path / f"step={step}.ckpt", **limit
        )
        assert_same(state_of(*again), state_of(*whole))


def test_what_stops_a_run_at_its_cut_leaves_the_cut_to_the_next(
    pl: ModuleType, quiet: dict[str, Any], tmp_path: Path
) -> None:
    """The epoch has begun and does not begin again: its first batch brings the cut."""

    class Stop(pl.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if trainer.current_epoch == 2 and batch_idx == 0:
                raise RuntimeError("stopped")

    whole = run(pl, quiet, "plain", tmp_path, {})
    leave = pl.callbacks.OnExceptionCheckpoint(tmp_path, "stopped")
    with pytest.raises(RuntimeError, match="stopped"):
        run(pl, quiet, "plain", tmp_path / "b", {}, Stop(), leave)
    saved = torch.load(tmp_path / "stopped.ckpt", weights_only=True)["callbacks"][whole[2].state_key]
    assert saved["done"] == 0
    again = run(pl, quiet, "plain", tmp_path / "c", {}, ckpt_path=tmp_path / "stopped.ckpt")
    assert_same(state_of(*again), state_of(*whole))
