"""QuantizationAwareTraining in a Trainer: when it rounds and observes, what checkpoints hold, what it says."""

from __future__ import annotations

import copy
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_perf as lp
from lightning_perf.host import MisconfigurationException
from lightning_perf.quantization import entries, preparation, ranges, to_qdq
from lightning_perf.quantization.callback_distill import distance
from lightning_perf.quantization.callback_schedule import Schedule, batches_until, check_moment
from lightning_perf.quantization.layers import records
from tests.quantization.modules import images, make


def fit(module: Any, callbacks: list[Any], quiet: dict[str, Any], ns: ModuleType = pl, **arguments: Any) -> Any:
    torch.manual_seed(11)
    ckpt = arguments.pop("ckpt_path", None)
    trainer = ns.Trainer(**{**quiet, "max_epochs": 2, **arguments}, callbacks=callbacks)
    trainer.fit(module, images(shuffle=True), images(16), ckpt_path=ckpt)
    return trainer


class Watcher(pl.Callback):
    """Notes after every batch what is switched on, and the first range."""

    def __init__(self) -> None:
        self.rows: list[tuple[bool, bool, bool]] = []
        self.spans: list[Any] = []
        self.in_validation: list[Any] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        shared = preparation(pl_module)
        assert shared is not None
        self.rows.append((shared.quantizing, shared.observing, pl_module.bn.training))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.spans.append(preparation(pl_module).ranges.span("conv<input"))  # type: ignore[union-attr]

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        shared = preparation(pl_module)
        assert shared is not None
        self.in_validation.append((trainer.sanity_checking, shared.ranges.span("conv<input"), shared.observing))


def test_the_schedule_of_a_run(quiet: dict[str, Any]) -> None:
    """8 batches: rounding from the third, batch norms still from the fifth, ranges from the seventh."""
    watcher = Watcher()
    qat = lp.QuantizationAwareTraining(start=0.25, freeze_batch_norm=0.5, freeze_observers=0.75)
    module = make(pl)
    fit(module, [qat, watcher], quiet)
    assert [row[0] for row in watcher.rows] == [False] * 2 + [True] * 6
    assert [row[1] for row in watcher.rows] == [False] * 2 + [True] * 4 + [False] * 2
    assert [row[2] for row in watcher.rows] == [True] * 4 + [False] * 4
    assert watcher.spans[:2] == [None, None]
    assert len(set(watcher.spans[2:6])) == 4, "ranges move with every batch"
    assert len(set(watcher.spans[5:])) == 1, "and stand still afterwards"
    assert watcher.in_validation == [
        (True, None, False),
        (False, watcher.spans[3], False),
        (False, watcher.spans[7], False),
    ]
    assert module.bn.training, "the mode of the batch norm is the user's again"


def test_before_it_starts_training_is_the_plain_one(quiet: dict[str, Any]) -> None:
    plain, ours = make(pl), make(pl)
    fit(plain, [], quiet)
    fit(ours, [lp.QuantizationAwareTraining(start=4, freeze_observers=7, freeze_batch_norm=8)], quiet)
    assert ours.seen[:5] == plain.seen[:5], "the first step with ranges is still in float"
    assert ours.seen[5:] != plain.seen[5:]


def test_ranges_are_those_of_the_training_batches(quiet: dict[str, Any]) -> None:
    """By hand: the mean of the ends over the batches, zero included; validation data are ten times as large."""
    module = make(pl)
    torch.manual_seed(11)
    trainer = pl.Trainer(**quiet, max_epochs=1, callbacks=[lp.QuantizationAwareTraining(freeze_observers=1.0)])
    data = images()
    x, y = images(16).dataset.tensors  # type: ignore[attr-defined]
    trainer.fit(module, data, DataLoader(TensorDataset(x * 10, y), 8))
    ends = [(x.min().item(), x.max().item()) for x, _ in data]
    mean = tuple(sum(side) / len(ends) for side in zip(*ends, strict=True))
    assert ranges(module)["conv"].input == pytest.approx(mean)


@pytest.mark.parametrize("epochs", [1, 2])
def test_resume_is_exact_with_a_teacher_and_a_late_start(epochs: int, quiet: dict[str, Any], tmp_path: Path) -> None:
    def callbacks() -> list[Any]:
        qat = lp.QuantizationAwareTraining(start=0.2, freeze_batch_norm=0.5, distill=True)
        saver = pl.callbacks.ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
        return [qat, lp.ExactResume(), saver]

    settings = {"max_epochs": 3, "enable_checkpointing": True}
    whole, resumed = make(pl), make(pl)
    fit(whole, callbacks(), quiet, **settings)
    ckpt = tmp_path / f"epoch={epochs - 1}.ckpt"
    checkpoint = torch.load(ckpt, weights_only=True)
    assert checkpoint["state_dict"].keys() == make(pl).state_dict().keys()
    fit(resumed, callbacks(), quiet, **settings, ckpt_path=str(ckpt))
    assert resumed.seen == whole.seen[4 * epochs :]
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    mine, theirs = preparation(resumed), preparation(whole)
    assert mine is not None
    assert theirs is not None
    assert torch.equal(mine.ranges.low, theirs.ranges.low)
    assert torch.equal(mine.ranges.high, theirs.ranges.high)


def test_checkpoints_go_both_ways_and_test_finds_the_ranges(
    ns: ModuleType, quiet: dict[str, Any], tmp_path: Path
) -> None:
    """#12896: ``trainer.test(ckpt_path=...)``, here in another process's place: a new module and a new callback."""
    path = tmp_path / "c.ckpt"
    module = make(ns)
    trainer = fit(module, [lp.QuantizationAwareTraining()], quiet, ns)
    trainer.save_checkpoint(path)
    (expected,) = trainer.test(module, images(16), verbose=False)
    assert trainer.test(module, images(16), ckpt_path=str(path), verbose=False) == [expected]
    other = ns.Trainer(**quiet, callbacks=[lp.QuantizationAwareTraining(freeze_observers=0.5)])
    fresh = make(ns)
    assert other.test(fresh, images(16), ckpt_path=str(path), verbose=False) == [expected]
    assert [layer.confirmed for _, _, layer in records(fresh)] == [layer.confirmed for _, _, layer in records(module)]
    assert any(layer.confirmed for _, _, layer in records(fresh))
    plain = make(ns)
    (in_float,) = ns.Trainer(**quiet).test(plain, images(16), ckpt_path=str(path), verbose=False)
    assert in_float != expected
    assert in_float["test_loss"] == pytest.approx(expected["test_loss"], rel=0.1)
    plain_path = tmp_path / "plain.ckpt"
    fit(make(ns), [], quiet, ns, max_epochs=1).save_checkpoint(plain_path)
    qat = lp.QuantizationAwareTraining()
    fit(make(ns), [qat], quiet, ns, ckpt_path=str(plain_path))
    assert any("holds no ranges" in line for line in qat.messages)


def test_what_is_validated_is_what_is_exported(quiet: dict[str, Any]) -> None:
    module = make(pl)
    trainer = fit(module, [lp.QuantizationAwareTraining()], quiet, max_epochs=4)
    (mine,) = trainer.validate(module, images(16), verbose=False)
    twin = to_qdq(module)
    assert isinstance(twin.bn, nn.Identity)
    (theirs,) = pl.Trainer(**quiet).validate(twin, images(16), verbose=False)
    assert mine == theirs
    image = torch.ones(1, 1, 8, 8)
    assert torch.equal(copy.deepcopy(module).eval()(image=image), module.eval()(image=image))


def test_it_says_what_stays_in_float(quiet: dict[str, Any]) -> None:
    qat = lp.QuantizationAwareTraining(ignore=["head"])
    module = make(pl)
    fit(module, [qat], quiet)
    text = [line.removeprefix("QuantizationAwareTraining: ") for line in qat.messages]
    assert text[0].startswith("3 layers quantized, 99.9% of the multiplications")
    assert text[0].endswith("1 batch norms folded.")
    assert "left in float, because it is ignored: head." in text
    assert "left in float, because no batch has reached it: rare." in text
    assert [row[0] for row in qat.section().rows if row[1] == "no"] == ["rare", "head"]
    assert {entry.name: entry.macs for entry in entries(module)}["deep"] == 8 * 64 * 4 * 4 * 9


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_precisions(precision: str, quiet: dict[str, Any]) -> None:
    module = make(pl)
    fit(module, [lp.QuantizationAwareTraining()], quiet, precision=precision)
    shared = preparation(module)
    assert shared is not None
    assert shared.ranges.low.dtype == torch.float32
    assert all(torch.isfinite(value).all() for value in module.state_dict().values())
    assert all(row.input is not None for row in ranges(module).values())


def test_infinite_values_stop_the_run(quiet: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError, match=r"infinite or NaN values in every batch: the input of conv, "):
        fit(make(pl, nan=True), [lp.QuantizationAwareTraining()], quiet, num_sanity_val_steps=0)


class Masked(nn.Linear):
    """Its last output is minus infinity, as masked scores are."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input).index_fill(1, torch.tensor([self.out_features - 1]), -torch.inf)


def test_infinite_outputs_alone_leave_the_layer_in_float(quiet: dict[str, Any], tmp_path: Path) -> None:
    """The run goes on, says it once, and a run from its checkpoint knows it."""

    def masked() -> Any:
        module = make(pl)
        module.deep = nn.Sequential(module.deep, nn.Flatten(2), nn.AdaptiveAvgPool1d(1), nn.Flatten())
        module.deep.append(Masked(4, 5)).append(nn.Softmax(-1)).append(nn.Linear(5, 4))
        module.deep.append(nn.Unflatten(1, (4, 1, 1)))
        return module

    module, qat = masked(), lp.QuantizationAwareTraining()
    trainer = fit(module, [qat], quiet)
    said = [line for line in qat.messages if "its outputs were infinite or NaN in every batch: deep.4." in line]
    assert len(said) == 1
    assert {entry.name: entry.quantized for entry in entries(module)}["deep.4"] is False
    assert "deep.4" not in ranges(module)
    assert {"conv", "deep.0", "deep.6", "head"} <= set(ranges(module))
    trainer.save_checkpoint(tmp_path / "c.ckpt")
    again = masked()
    fit(again, [lp.QuantizationAwareTraining()], quiet, max_epochs=3, ckpt_path=str(tmp_path / "c.ckpt"))
    assert {entry.name: entry.note for entry in entries(again)}["deep.4"] == "its outputs were infinite or NaN"


def test_some_infinite_batches_are_said(quiet: dict[str, Any]) -> None:
    class Sometimes(pl.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step == 1:
                batch[0][0, 0, 0, 0] = float("inf")

    qat = lp.QuantizationAwareTraining()
    fit(make(pl, lr=0.0), [Sometimes(), qat], quiet, max_epochs=1)
    assert any(
        "batches with infinite or NaN values were left out of the ranges of the input of conv" in m
        for m in qat.messages
    )


def test_distillation_adds_the_distance_to_the_float_module(quiet: dict[str, Any]) -> None:
    """With weights that do not move, the loss of the second batch grows by the distance of the heads, computed by hand."""
    losses: dict[bool, list[float]] = {}
    heads: list[torch.Tensor] = []

    def keep(layer: nn.Module, args: Any, output: torch.Tensor) -> None:
        if layer.training:
            heads.append(output.detach())

    for distill in (False, True):
        module, recorder = make(pl, lr=0.0), Recorder()
        module.head.register_forward_hook(keep)
        qat = lp.QuantizationAwareTraining(distill=distill, freeze_batch_norm=0)
        pl.Trainer(**quiet, max_epochs=1, callbacks=[qat, recorder]).fit(module, images(), images(16))
        losses[distill] = recorder.losses
    image, _ = list(images())[1]
    theirs = lp.unprepare(copy.deepcopy(module)).eval()(image=image)
    extra = (heads[1] - theirs).square().sum() / theirs.square().sum()
    assert extra > 1e-6
    assert losses[True][0] == losses[False][0], "no range is known in the first step"
    assert losses[True][1] - losses[False][1] == pytest.approx(extra.item(), rel=1e-2)


def test_distillation_of_a_module_that_keeps_tensors_with_a_graph(quiet: dict[str, Any]) -> None:
    module = make(pl)
    module.maps = [module.head.weight * 2]
    qat = lp.QuantizationAwareTraining(distill=True)
    trainer = pl.Trainer(**quiet, max_epochs=1, limit_val_batches=0, callbacks=[qat])
    trainer.fit(module, images())
    assert trainer.global_step == 4
    assert module.maps[0].grad_fn is not None


class Recorder(pl.Callback):
    """The losses that were optimized."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.losses.append(float(outputs["loss"]))


def test_the_teacher_draws_no_random_numbers_of_the_run(quiet: dict[str, Any]) -> None:
    """Dropout draws in the module and not in its teacher: the state of the generator goes on as without one."""
    states: dict[bool, list[torch.Tensor]] = {True: [], False: []}

    class States(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            states[distill].append(torch.get_rng_state())

    for distill in states:
        module = make(pl)
        module.deep = nn.Sequential(nn.Dropout(0.5), module.deep)
        qat = lp.QuantizationAwareTraining(distill=distill)
        fit(module, [qat, States()], quiet, max_epochs=1)
    assert all(torch.equal(left, right) for left, right in zip(states[True], states[False], strict=True))
    assert not torch.equal(states[True][0], states[True][1])


def test_distance_by_hand() -> None:
    mine, theirs = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]])
    assert distance(mine, theirs).item() == pytest.approx((1 + 4) / 16)
    assert distance(mine.bfloat16(), theirs.bfloat16()).dtype == torch.float32


def test_distillation_needs_the_loss(quiet: dict[str, Any]) -> None:
    module = make(pl)
    module.automatic_optimization = False
    with pytest.raises(MisconfigurationException, match=r"steps its optimizers by hand .* use distill=False"):
        fit(module, [lp.QuantizationAwareTraining(distill=True)], quiet)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scheme": "int5"}, "scheme='int5' is not known"),
        ({"start": 1.5}, "start=1.5 is a fraction above 1.0; use a whole number"),
        ({"freeze_observers": -1}, "freeze_observers=-1 must be a fraction"),
        ({"freeze_batch_norm": "half"}, "freeze_batch_norm='half' must be a fraction"),
        ({"start": 0.9}, "start=0.9 leaves no batch before freeze_observers=0.8"),
    ],
)
def test_mistakes_in_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lp.QuantizationAwareTraining(**arguments)


def test_moments() -> None:
    check_moment("start", 0)
    assert [batches_until(moment, 200) for moment in (0.0, 0.5, 1.0, 7)] == [0.0, 100.0, 200.0, 7.0]
    schedule = Schedule(0.0, 3, 0.5)
    assert [schedule.observers_frozen(now) for now in (2, 3)] == [False, True]
    assert not schedule.norms_frozen(10**9), "the length of the run is not known yet"


def test_a_run_without_end(quiet: dict[str, Any]) -> None:
    qat = lp.QuantizationAwareTraining()
    stop = {"milliseconds": 200}
    fit(make(pl), [qat, pl.callbacks.Timer(duration=stop)], quiet, max_epochs=-1)
    assert any("no known end, so freeze_observers=0.8 and freeze_batch_norm=0.5 never come" in m for m in qat.messages)
    with pytest.raises(MisconfigurationException, match=r"start=0.5 is a fraction of a run without a known end; use"):
        fit(
            make(pl), [lp.QuantizationAwareTraining(start=0.5), pl.callbacks.Timer(duration=stop)], quiet, max_epochs=-1
        )


def test_errors_reach_the_user(quiet: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="ignore: 'body' matches no layer"):
        fit(make(pl), [lp.QuantizationAwareTraining(ignore=["body"])], quiet)
    with pytest.raises(ValueError, match="prepared already"):
        fit(make(pl), [lp.QuantizationAwareTraining(), lp.QuantizationAwareTraining("int4")], quiet)


def test_a_second_fit_goes_on_with_the_ranges(quiet: dict[str, Any]) -> None:
    module, qat = make(pl), lp.QuantizationAwareTraining()
    fit(module, [qat], quiet)
    before = ranges(module)["conv"].input
    fit(module, [], quiet)
    assert ranges(module)["conv"].input == before, "without the callback the module rounds and ranges stand still"
    fit(module, [qat], quiet)
    assert ranges(module)["conv"].input != before
    assert any("its ranges are kept" in message for message in qat.messages)
    assert type(lp.unprepare(module).conv) is nn.Conv2d


def unlike(seed: int, **options: Any) -> Any:
    """The module with other weights."""
    module = make(pl, **options)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return module


def test_the_teacher_is_of_the_module_at_hand(quiet: dict[str, Any], tmp_path: Path) -> None:
    """One callback, two modules: the second run is that of a new callback, and what the callback holds its module's."""
    used = lp.QuantizationAwareTraining(distill=True)
    first = unlike(1, lr=0.0)
    fit(first, [used], quiet, max_epochs=1)
    again, fresh = unlike(2), unlike(2)
    trainer = fit(again, [used], quiet)
    fit(fresh, [lp.QuantizationAwareTraining(distill=True)], quiet)
    assert again.seen == fresh.seen
    for key, value in fresh.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    assert used._teacher is not None
    start = unlike(2).state_dict()
    assert torch.equal(used._teacher.state()["conv.weight"], start["conv.weight"])
    trainer.save_checkpoint(tmp_path / "c.ckpt")
    fit(unlike(3), [used], quiet, max_epochs=3, ckpt_path=tmp_path / "c.ckpt")
    assert torch.equal(used._teacher.state()["conv.weight"], start["conv.weight"]), "a resumed run keeps the saved one"
    module = unlike(4)
    fit(module, [used], quiet, max_epochs=1)
    float_again = lp.unprepare(module)
    weights = {key: value.clone() for key, value in float_again.state_dict().items()}
    fit(float_again, [used], quiet, max_epochs=1)
    assert torch.equal(used._teacher.state()["conv.weight"], weights["conv.weight"]), "after unprepare it starts anew"


def without_index(module: Any) -> Any:
    """The module with a ``training_step`` that takes the batch alone."""
    base = type(module)

    class WithoutIndex(base):
        def training_step(self, batch: Any) -> Any:
            return base.training_step(self, batch, 0)

    module.__class__ = WithoutIndex
    return module


def test_a_step_without_index_is_distilled(quiet: dict[str, Any]) -> None:
    module, plain = without_index(make(pl)), make(pl)
    for one in (module, plain):
        fit(one, [lp.QuantizationAwareTraining(distill=True)], quiet, max_epochs=1)
    assert module.seen == plain.seen


def test_distillation_needs_the_batch(quiet: dict[str, Any]) -> None:
    base = type(make(pl))

    class Draws(base):
        def training_step(self, dataloader_iter: Any) -> Any:
            (image, label), _, _ = next(dataloader_iter)
            self.seen.append(("train", 0.0))
            return nn.functional.cross_entropy(self(image=image), label)

    with pytest.raises(MisconfigurationException, match=r"Draws.training_step takes its batches.*or distill=False"):
        fit(Draws(), [lp.QuantizationAwareTraining(distill=True)], quiet)
    module = Draws()
    fit(module, [lp.QuantizationAwareTraining()], quiet, max_epochs=1)
    assert len([kind for kind, _ in module.seen if kind == "train"]) == 4
