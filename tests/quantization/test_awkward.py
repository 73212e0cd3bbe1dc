"""Modules and runs that a first look does not think of, each of which once gave wrong numbers or went silent."""

from __future__ import annotations

import math
import warnings
from collections import namedtuple
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import lightning_perf as lp
from lightning_perf.quantization import entries, folded_float, layers, preparation, prepare, ranges, to_qdq
from lightning_perf.quantization.callback_schedule import batches_of_run
from lightning_perf.quantization.layers import records
from lightning_perf.quantization.observers import Samples
from lightning_perf.quantization.prepare import load_state, state_of
from lightning_perf.quantization.rounding import round_activation
from lightning_perf.quantization.watch import Watch
from tests.quantization.modules import images, make


def layer_of(module: nn.Module, wanted: str) -> Any:
    return next(layer for name, _, layer in records(module) if name == wanted)


@pytest.mark.parametrize("batches", [1, 40])
def test_calibration_looks_at_every_channel(batches: int) -> None:
    """The size of a batch is a multiple of that of a row, so that a fixed distance meets one channel only."""
    samples = Samples()
    for _ in range(batches):
        samples.add(torch.arange(256.0).repeat(2048, 1))
    seen = torch.bincount(samples.values().long(), minlength=256)
    assert (seen > 0).all()


def test_calibration_weighs_early_and_late_batches_alike() -> None:
    samples = Samples()
    for batch in range(100):
        samples.add(torch.full((10_000,), float(batch)))
    seen = torch.bincount(samples.values().long(), minlength=100)
    assert seen.max() <= 2 * seen.min()


class Tied(nn.Module):
    """An embedding whose weight is that of the head, too."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(9, 32), nn.Linear(32, 9, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embedding(x))


@pytest.mark.parametrize("head", ["float", "int4"])
def test_a_tied_weight_that_one_layer_rounds_otherwise(head: str) -> None:
    torch.manual_seed(0)
    net = Tied().eval()
    prepare(net, "int8-weight-only", overrides={"head": head})
    x = torch.arange(9)
    with torch.no_grad():
        for twin in (folded_float(net), to_qdq(net)):
            torch.testing.assert_close(twin(x), net(x), rtol=1e-5, atol=1e-6)


def test_nothing_known_is_refused() -> None:
    """A copy that is all in float would pass for a quantized one."""
    net = nn.Sequential(nn.Linear(4, 2))
    prepare(net)
    for convert in (to_qdq, folded_float, ranges):
        with pytest.raises(ValueError, match="no range of Sequential is known"):
            convert(net)


def fit(module: Any, callbacks: list[Any], quiet: dict[str, Any], ckpt_path: Any = None, **arguments: Any) -> Any:
    trainer = pl.Trainer(**{**quiet, "max_epochs": 1, **arguments}, callbacks=callbacks)
    trainer.fit(module, images(), images(16), ckpt_path=ckpt_path)
    return trainer


class Switches(pl.Callback):
    def __init__(self) -> None:
        self.rows: list[tuple[bool, bool]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        shared = preparation(pl_module)
        assert shared is not None
        self.rows.append((shared.quantizing, shared.observing))


def test_a_run_that_goes_on_from_a_plain_checkpoint_counts_what_is_left(quiet: dict[str, Any], tmp_path: Path) -> None:
    """Nine epochs of ten are done without rounding: the last one has its own start and its own end of observing."""
    plain = fit(make(pl), [], quiet, max_epochs=9)
    plain.save_checkpoint(tmp_path / "plain.ckpt")
    module, switches = make(pl), Switches()
    callbacks = [lp.QuantizationAwareTraining(start=0.25, freeze_observers=0.75), switches]
    trainer = fit(module, callbacks, quiet, tmp_path / "plain.ckpt", max_epochs=10)
    assert switches.rows == [(False, False), (True, True), (True, True), (True, False)]
    assert layer_of(module, "conv").rounds
    trainer.save_checkpoint(tmp_path / "rounded.ckpt")
    again, switches = make(pl), Switches()
    callbacks = [lp.QuantizationAwareTraining(start=0.25, freeze_observers=0.75), switches]
    fit(again, callbacks, quiet, tmp_path / "rounded.ckpt", max_epochs=11)
    assert switches.rows == [(True, True), (True, True), (True, False), (True, False)], "of 8 batches since 9 epochs"


def test_the_length_of_a_run_under_accumulation(quiet: dict[str, Any]) -> None:
    """4 batches, steps after 3 and after the 4th: not the 6 that 2 steps of 3 would make."""
    switches = Switches()
    callbacks = [lp.QuantizationAwareTraining(start=0.5, freeze_observers=0.75), switches]
    fit(make(pl), callbacks, quiet, accumulate_grad_batches=3)
    assert switches.rows == [(False, False), (False, False), (True, True), (True, False)]
    assert batches_of_run(4, -1, 3, 3) == 7
    assert batches_of_run(math.inf, 5, 3, 3) == 9
    assert batches_of_run(math.inf, 5, -1, 3) is None


def test_a_run_that_ends_before_its_start_says_so(quiet: dict[str, Any]) -> None:
    module, qat = make(pl), lp.QuantizationAwareTraining(start=100, freeze_observers=200)
    fit(module, [qat], quiet)
    assert any("rounding has not begun: the run ended before start=100" in message for message in qat.messages)
    with pytest.raises(ValueError, match="no range of Net is known"):
        to_qdq(module)
    assert preparation(module).quantizing  # type: ignore[union-attr]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("how", [nn.utils.weight_norm, nn.utils.prune.identity])
def test_recurrent_weights_that_torch_computes(how: Any) -> None:
    net = nn.Sequential(nn.LSTM(4, 4), nn.Linear(4, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        how(net[0], "weight_hh_l0")
    shared = prepare(net, "int8-weight-only")
    assert "its weight is not a parameter" in shared.left["0"]


def test_a_failed_calibration_leaves_known_ranges_alone() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    lp.quantize(net, [torch.randn(8, 4)])
    layer_of(net, "1").active = False
    before = ranges(net)["0"].input
    with pytest.raises(ValueError, match="infinite or NaN"):
        lp.quantize(net, [torch.full((8, 4), math.nan)])
    assert ranges(net)["0"].input == before
    assert not layer_of(net, "1").active


def test_packed_sequences_arrive_whole() -> None:
    seen: list[Any] = []

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(4, 4), nn.Linear(4, 2)

        def forward(self, x: PackedSequence) -> Tensor:
            seen.append(x)
            return self.head(self.lstm(x)[1][0][-1])

    lp.quantize(Net(), [pack_sequence([torch.randn(3, 4), torch.randn(2, 4)])])
    assert isinstance(seen[0], PackedSequence)


def test_named_tuples_keep_their_names() -> None:
    Pair = namedtuple("Pair", "a b")

    class Net(nn.Linear):
        def forward(self, batch: Any) -> Tensor:  # type: ignore[override]
            return self.head(batch.a + batch.b)

    net = Net(4, 4)
    net.head = nn.Linear(4, 2)
    lp.quantize(net, [{"batch": Pair(torch.ones(2, 4), torch.ones(2, 4))}], ignore=[])


def test_a_batch_norm_that_gets_something_else() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.bn(y * 2 if x.mean() > 5 else y)

    net, x = Net(), torch.randn(2, 1, 6, 6)
    prepare(net, "int8-weight-only")
    with Watch(net):
        net(x)
    net.eval()
    with torch.no_grad():
        with Watch(net):
            net(x)
        assert layer_of(net, "conv").confirmed
        y = net.conv(x + 10)
        assert torch.equal(net(x + 10), F.batch_norm(y * 2, net.bn.running_mean, net.bn.running_var, eps=net.bn.eps))
        assert layer_of(net, "conv").norm is None


def test_features_before_a_batch_norm() -> None:
    """A net that returns them when asked, which no watched step did: rounded, and not what the norm makes of them."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: Tensor, features: bool = False) -> Tensor:
            y = self.conv(x)
            z = self.bn(y)
            return y if features else z

    torch.manual_seed(0)
    net, x = Net(), torch.randn(8, 1, 6, 6)
    net.bn.running_mean = torch.tensor([3.0, -2.0, 1.0, 4.0])  # pyright: ignore[reportAttributeAccessIssue]
    net.eval()
    with torch.no_grad():
        wanted = net(x, features=True)
    prepare(net, "int8-weight-only")
    with torch.no_grad(), Watch(net):
        net(x)
    with torch.no_grad():
        found = net(x, features=True)
    assert layer_of(net, "conv").norm is net.bn
    assert 0 < (found - wanted).norm() / wanted.norm() < 0.01


def test_a_layer_made_from_the_class_of_a_prepared_one() -> None:
    """``type(layer)(...)``, as a ``clone`` of a user's own does: a layer in float."""
    net = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))
    prepare(net)
    with Watch(net):
        net(torch.randn(3, 4))
    twins = nn.Sequential(type(net[0])(4, 2), type(net[1])(2))
    assert twins(torch.zeros(3, 4)).shape == (3, 2)
    assert not list(records(twins))


def test_batch_norms_that_are_converted_and_back() -> None:
    """As Lightning's ``sync_batchnorm`` does it around a fit."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), torch.randn(4, 1, 6, 6) + 3
    prepare(net, "int8-weight-only")
    with Watch(net):
        net(x)
    net.eval()
    with torch.no_grad():
        with Watch(net):
            net(x)
        expected = net(x)
        nn.SyncBatchNorm.convert_sync_batchnorm(net)
        torch.testing.assert_close(to_qdq(net)(x), expected)
        torch.testing.assert_close(net(x), expected)


def test_a_metric_that_is_not_finite_has_no_drop(quiet: dict[str, Any]) -> None:
    class Broken(make(pl).__class__):  # type: ignore[misc]
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self(image=batch[0])
            self.log("val_loss", torch.tensor(math.nan))

    module = Broken()
    with pytest.raises(ValueError, match="val_loss is nan in float, so that no drop of it can be measured"):
        lp.quantize(module, images(), max_drop=0.1)


def test_calibration_through_a_trainer_that_has_the_callback(quiet: dict[str, Any]) -> None:
    module = make(pl)
    trainer = fit(module, [lp.QuantizationAwareTraining()], quiet)
    lp.quantize(module, images(16), trainer=trainer)
    assert ranges(module)["conv"].input is not None


class Constrained(nn.Linear):
    """A norm held by writing to the weight in forward, as EEGNet does it."""

    def forward(self, input: Tensor) -> Tensor:
        self.weight.data = torch.renorm(self.weight.data, 2, 0, 1.0)
        return super().forward(input)


class Scaled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


def test_a_forward_that_writes_to_its_weight_is_left_in_float() -> None:
    net = nn.Sequential(Constrained(4, 2), Scaled(2, 2))
    x = torch.randn(8, 4)
    shared = prepare(net, "int8-weight-only")
    with pytest.warns(UserWarning, match="layer '0' is left in float from now on, because its forward writes"):
        net(x)
    net[0].weight.data.fill_(3.0)
    net(x)
    assert net[0].weight.norm(dim=1).tolist() == pytest.approx([1.0, 1.0], abs=1e-5)
    assert [layer.active for _, _, layer in records(net)] == [False, True]
    notes = {entry.name: entry.note for entry in entries(net)}
    assert notes["0"] == "its forward writes to its weights"
    state = state_of(net)
    other = nn.Sequential(Constrained(4, 2), Scaled(2, 2))
    prepare(other, "int8-weight-only")
    load_state(other, state)
    assert {entry.name: entry.note for entry in entries(other)} == notes
    assert shared.scheme.name == "int8-weight-only"


def test_a_layer_whose_first_input_is_no_float_tensor_says_so() -> None:
    class Indexed(nn.Linear):
        def forward(self, index: Tensor, x: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x[index])

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.indexed, self.head = Indexed(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.indexed(torch.arange(2), x))

    net = lp.quantize(Net(), [torch.randn(3, 4)])
    note = next(entry.note for entry in entries(net) if entry.name == "indexed")
    assert note == "its forward was not given input first, as tensors of floating-point numbers"


def test_recurrent_work_is_counted_under_keywords() -> None:
    net = nn.Sequential(nn.LSTM(4, 4), nn.Linear(4, 4))
    shared = prepare(net, "int8-weight-only")
    with Watch(net):
        net[0](input=torch.randn(3, 2, 4))
    assert shared.macs["0"] == 3 * 2 * 2 * 16 * 4


def test_a_scheme_without_ranges_is_watched_whatever_freezes(quiet: dict[str, Any]) -> None:
    module, qat = make(pl), lp.QuantizationAwareTraining("int8-weight-only", freeze_observers=0)
    fit(module, [qat], quiet)
    assert layer_of(module, "conv").norm is module.bn
    assert any("layers quantized" in message for message in qat.messages)


@pytest.mark.parametrize("where", ["layer", "norm"])
def test_a_hook_that_comes_later_sees_the_output_of_its_layer(where: str) -> None:
    net, x = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), torch.randn(4, 1, 6, 6)
    net[1].running_mean.fill_(5.0)  # type: ignore[union-attr, operator]
    lp.quantize(net, [x]).eval()
    seen: list[Tensor] = []
    if where == "layer":
        net[0].register_forward_hook(lambda module, args, output: seen.append(output))
    else:
        net[1].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    outputs = [net(x)]
    with torch.no_grad():
        outputs.append(net(x))
    torch.testing.assert_close(seen[0], seen[1])
    torch.testing.assert_close(*outputs)


def test_mistakes_in_schemes_are_named() -> None:
    net = nn.Sequential(nn.Linear(4, 2))
    with pytest.raises(ValueError, match="overrides for '0': scheme='FLOAT' is not known; choose one of float, int8"):
        prepare(net, overrides={"0": "FLOAT"})
    with pytest.raises(ValueError, match=r"scheme=\['int8'\] is not known; choose one of"):
        prepare(net, ["int8"])  # type: ignore[arg-type]


def test_self_attention_rounds_its_input_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Tensor] = []

    def counted(x: Tensor, *numbers: Any) -> Tensor:
        calls.append(x)
        return round_activation(x, *numbers)

    monkeypatch.setattr(layers, "round_activation", counted)
    net, x = nn.MultiheadAttention(8, 2), torch.randn(3, 2, 8)
    lp.quantize(net, [(x, x, x)])
    assert layer_of(net, "").known, "a key and a value have ranges of their own, for calls that are no self-attention"
    net(x, x, x)
    assert len(calls) == 1
    net(x, x.clone(), x.clone())
    assert len(calls) == 4
