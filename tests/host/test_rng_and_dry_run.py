"""Random state and the dry run: nothing drawn, logged, stepped or counted is left behind."""

from __future__ import annotations

import io
import random
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from lightning_perf.host import PerfCallback, capture_rng, preserved_rng, restore_rng
from lightning_perf.host.dry_run import call_step, dry_step, peek
from tests.contract.modules import KINDS, images, make


def draw() -> tuple[float, float, float]:
    return float(torch.rand(())), random.random(), float(np.random.rand())


def test_rng_round_trips_through_a_weights_only_file() -> None:
    """Captured state, written and read with ``weights_only=True``, gives the same draws again."""
    state = capture_rng()
    expected = draw()
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    restore_rng(torch.load(buffer, weights_only=True))
    assert draw() == expected


def test_preserved_rng() -> None:
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    with preserved_rng():
        first = draw()
    assert draw() == first


@pytest.mark.parametrize("kind", KINDS)
def test_dry_step_leaves_no_trace(kind: str, ns: ModuleType, quiet: dict[str, Any]) -> None:
    """A fit with a dry step in the middle equals one without: weights, buffers, metrics, logs, global step."""

    class Dry(PerfCallback):
        def __init__(self, active: bool) -> None:
            super().__init__()
            self.active, self.ran = active, 0

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if self.active and batch_idx == 2:
                seen: list[Any] = []
                dry_step(pl_module, batch, watch=lambda clone: seen.append(clone))
                assert seen[0] is not pl_module
                assert len(seen[0].losses) == len(pl_module.losses) + 1
                self.ran += 1

    def run(active: bool) -> tuple[Any, Any]:
        module = make(kind, ns)
        torch.manual_seed(11)
        dry = Dry(active)
        trainer = ns.Trainer(**quiet, max_epochs=2, callbacks=[dry])
        trainer.fit(module, images(), images(8, shuffle=False))
        assert dry.ran == (2 if active else 0)
        return trainer, module

    trainer, module = run(True)
    plain_trainer, plain = run(False)
    assert module.losses == plain.losses
    assert trainer.global_step == plain_trainer.global_step
    assert dict(trainer.callback_metrics) == dict(plain_trainer.callback_metrics)
    for key, value in module.state_dict().items():
        assert torch.equal(value, plain.state_dict()[key])


def test_peek_costs_no_draw_and_no_sample() -> None:
    generator = torch.Generator().manual_seed(5)
    data = TensorDataset(torch.arange(8.0))
    loader = DataLoader(data, batch_size=2, sampler=RandomSampler(data, generator=generator))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    peeked = peek(loader)
    assert torch.equal(torch.get_rng_state(), before)
    batches = [batch[0] for batch in loader]
    assert torch.equal(batches[0], peeked[0])
    assert sorted(torch.cat(batches).tolist()) == list(range(8))


def test_peek_refuses_a_single_pass_loader() -> None:
    with pytest.raises(ValueError, match="generator can be read only once"):
        peek(batch for batch in range(3))


def test_a_step_may_check_the_class_of_its_optimizer(ns: ModuleType, quiet: dict[str, Any]) -> None:
    """As ``ManualOptimBoringModel`` of Lightning's demos does; the stand-in of a dry run steps nothing all the same."""
    seen: list[bool] = []

    class Checks(type(make("manual", ns))):  # type: ignore[misc]
        def training_step(self, batch: Any, batch_idx: int) -> None:
            seen.append(isinstance(self.optimizers(), torch.optim.Optimizer))
            super().training_step(batch, batch_idx)

    class Look(ns.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            before = [p.clone() for p in pl_module.parameters()]
            dry_step(pl_module, batch)
            assert all(torch.equal(a, b) for a, b in zip(before, pl_module.parameters(), strict=True))

    ns.Trainer(**quiet, max_steps=2, callbacks=[Look()]).fit(Checks(), images())
    assert seen == [True] * 4


def test_a_step_is_called_with_what_it_takes() -> None:
    """As Lightning calls it: the index of the batch is optional, of any name, and passed to ``*args``."""

    def plain(batch: Any) -> Any:
        return batch

    def renamed(batch: Any, i: int) -> Any:
        return batch, i

    def loaders(batch: Any, batch_idx: int, dataloader_idx: int) -> Any:
        return batch, batch_idx, dataloader_idx

    def first_loader(batch: Any, batch_idx: int, dataloader_idx: int = 5) -> Any:
        return batch, batch_idx, dataloader_idx

    def anything(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    assert call_step(plain, "b", 2) == "b"
    assert call_step(renamed, "b", 2) == ("b", 2)
    assert call_step(loaders, "b", 2) == ("b", 2, 0)
    assert call_step(first_loader, "b", 2) == ("b", 2, 5)
    assert call_step(anything, "b", 2) == (("b", 2), {})
