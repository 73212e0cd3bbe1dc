"""ExactResume: that it is needed, and what it says where it cannot keep its promise."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

import lightning_perf as lp
from tests.contract.modules import images, make


def run(
    ns: ModuleType,
    quiet: dict[str, Any],
    folder: Path,
    callbacks: list[Any],
    *,
    ckpt: Path | None = None,
    kind: str = "plain",
    loader: DataLoader | None = None,
) -> Any:
    module = make(kind, ns)
    torch.manual_seed(5 if ckpt is None else 6)
    saver = ns.callbacks.ModelCheckpoint(folder, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    trainer = ns.Trainer(**{**quiet, "enable_checkpointing": True}, max_epochs=3, callbacks=[*callbacks, saver])
    trainer.fit(module, loader or images(), images(8, shuffle=False), ckpt_path=ckpt)
    return module


def same(left: Any, right: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left.parameters(), right.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["plain", "scheduled"])
def test_it_is_needed(kind: str, ns: ModuleType, quiet: dict[str, Any], tmp_path: Path) -> None:
    """Lightning alone does not repeat; ``scheduled`` asks for the number of steps, which draws the shuffle early."""
    whole = run(ns, quiet, tmp_path / "a", [lp.ExactResume()], kind=kind)
    ckpt = tmp_path / "a" / "epoch=1.ckpt"
    assert not same(run(ns, quiet, tmp_path / "b", [], ckpt=ckpt, kind=kind), whole)
    assert same(run(ns, quiet, tmp_path / "c", [lp.ExactResume()], ckpt=ckpt, kind=kind), whole)


def test_generators_of_loaders_are_restored(ns: ModuleType, quiet: dict[str, Any], tmp_path: Path) -> None:
    """A sampler with a generator of its own, which no global state reaches."""

    def loader() -> DataLoader:
        data = images().dataset
        assert isinstance(data, TensorDataset)
        sampler = RandomSampler(data, generator=torch.Generator().manual_seed(2))
        return DataLoader(data, batch_size=4, sampler=sampler)

    whole = run(ns, quiet, tmp_path / "a", [lp.ExactResume()], loader=loader())
    ckpt = tmp_path / "a" / "epoch=0.ckpt"
    assert same(run(ns, quiet, tmp_path / "b", [lp.ExactResume()], ckpt=ckpt, loader=loader()), whole)


def test_it_says_where_it_cannot(quiet: dict[str, Any], tmp_path: Path) -> None:
    """A checkpoint without random state, other threads, another number of ranks."""
    import lightning.pytorch as ns

    run(ns, quiet, tmp_path / "a", [])
    callback = lp.ExactResume()
    run(ns, quiet, tmp_path / "b", [callback], ckpt=tmp_path / "a" / "epoch=0.ckpt")
    assert "holds no random state" in callback.messages[-1]
    run(ns, quiet, tmp_path / "c", [lp.ExactResume()])
    ckpt = tmp_path / "c" / "epoch=0.ckpt"
    checkpoint = torch.load(ckpt, weights_only=True)
    state = checkpoint["callbacks"][callback.state_key]
    state["threads"] = 7
    torch.save(checkpoint, tmp_path / "threads.ckpt")
    callback = lp.ExactResume()
    run(ns, quiet, tmp_path / "d", [callback], ckpt=tmp_path / "threads.ckpt")
    assert "saved with 7 threads and 1 resume it" in callback.messages[-1]
    state["ranks"] = state["ranks"] * 2
    torch.save(checkpoint, tmp_path / "ranks.ckpt")
    callback = lp.ExactResume()
    run(ns, quiet, tmp_path / "e", [callback], ckpt=tmp_path / "ranks.ckpt")
    assert "saved by 2 ranks and 1 resume it" in callback.messages[-1]


def test_evaluation_draws_nothing(ns: ModuleType, quiet: dict[str, Any], tmp_path: Path) -> None:
    """``test(ckpt_path=...)`` leaves the random state of the process alone."""
    run(ns, quiet, tmp_path, [lp.ExactResume()])
    module = make("plain", ns)
    trainer = ns.Trainer(**quiet, callbacks=[lp.ExactResume()])
    torch.manual_seed(3)
    before = torch.get_rng_state()
    trainer.test(module, DataLoader(images().dataset, 4), ckpt_path=tmp_path / "epoch=0.ckpt", verbose=False)
    base_seed_draws = 1  # every DataLoader iterator draws one base seed
    torch.set_rng_state(before)
    for _ in range(base_seed_draws):
        torch.empty((), dtype=torch.int64).random_()
    expected = torch.get_rng_state()
    torch.set_rng_state(before)
    trainer.test(module, DataLoader(images().dataset, 4), ckpt_path=tmp_path / "epoch=0.ckpt", verbose=False)
    assert torch.equal(torch.get_rng_state(), expected)
