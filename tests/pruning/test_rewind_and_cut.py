"""Lottery-ticket rewinding in a run whose channels are cut: what was kept of the early step follows the cut."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import lightning_perf as lp
from lightning_perf.pruning.cut import Cut
from tests.contract.modules import images, make

MASKED = ("net.0.weight", "net.4.weight", "net.7.weight")


@pytest.mark.parametrize(
    ("rewind_to", "at", "resumes", "first"),
    [
        (3, 0.25, None, "channels"),
        (3, 0.25, None, "masks"),
        (3, 0.25, 5, "channels"),
        (3, 0.25, 9, "channels"),
        (10, 0.25, None, "channels"),
        (10, 0.25, 14, "masks"),
        (3, 0.75, None, "masks"),
        (3, 0.75, 14, "channels"),
    ],
)
def test_surviving_weights_are_those_of_the_early_step(
    rewind_to: int,
    at: float,
    resumes: int | None,
    first: str,
    quiet: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pl: ModuleType,
) -> None:
    """The cut comes between the step and the rewinding, before the step, or after the rewinding, of 24 steps."""
    seen: dict[int, dict[str, Tensor]] = {}
    cuts: list[Cut] = []
    apply = Cut.apply

    def noted(self: Cut, module: Any, optimizers: Any = ()) -> None:
        if optimizers:
            cuts.append(self)
        apply(self, module, optimizers)

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            seen[trainer.global_step] = {key: value.clone() for key, value in pl_module.state_dict().items()}

    def run(ckpt_path: Any = None) -> Any:
        pruning = lp.MagnitudePruning(0.5, start=0.5, end=0.7, rewind_to=rewind_to)
        both = [lp.ChannelPruning(0.6, round_to=2, at=at), pruning]
        saver = pl.callbacks.ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1)
        callbacks = [*(both if first == "channels" else both[::-1]), Look(), lp.OptimizerFactory(ema=0.9), saver]
        torch.manual_seed(11)
        settings = {**quiet, "enable_checkpointing": True}
        trainer = pl.Trainer(**settings, max_epochs=4, callbacks=callbacks)
        trainer.fit(make("plain", pl), images(), ckpt_path=ckpt_path)
        return pruning

    monkeypatch.setattr(Cut, "apply", noted)
    pruning = run()
    if resumes is not None:
        early, cuts[:] = seen[rewind_to], [] if at * 24 > resumes else cuts
        seen.clear()
        pruning = run(tmp_path / f"step={resumes}.ckpt")
        seen[rewind_to] = early
    (cut,) = cuts
    assert any("weights are back" in line for line in pruning.messages)
    back, then = seen[17], seen[rewind_to]
    for key, value in then.items():
        expected = value
        for dim, kept in cut.keep.get(key, {}).items():
            if rewind_to <= at * 24 < 17:
                expected = torch.stack([expected.select(dim, int(index)) for index in kept], dim)
        assert back[key].shape == expected.shape, key
        survives = back[key] != 0 if key in MASKED else torch.ones_like(back[key], dtype=torch.bool)
        assert torch.equal(back[key][survives], expected[survives]), key


@pytest.fixture
def pl() -> ModuleType:
    import lightning.pytorch

    return lightning.pytorch
