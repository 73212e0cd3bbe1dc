"""Post-training quantization: calibration, refusals, and the search for what must stay in float."""

from __future__ import annotations

from collections.abc import Set
from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

import lightning_perf as lp
from lightning_perf.autopilot.sensitivity import budget_of, grouped, keep_fewest
from lightning_perf.quantization import entries, preparation, ranges, section, to_qdq
from lightning_perf.quantization.layers import records
from lightning_perf.quantization.listing import lines
from lightning_perf.report import Report, Run
from lightning_perf.report.quantities import FINAL_METRIC
from tests.quantization.modules import images, make


def trained(ns: ModuleType, quiet: dict[str, Any]) -> Any:
    module = make(ns)
    ns.Trainer(**quiet, max_epochs=3).fit(module, images(), images(16))
    return module


@pytest.mark.parametrize("own_trainer", [True, False])
def test_a_lightning_module_is_calibrated_by_its_validation_step(own_trainer: bool, ns: ModuleType, quiet: Any) -> None:
    module = trained(ns, quiet)
    weights = {key: value.clone() for key, value in module.state_dict().items()}
    trainer = ns.Trainer(**quiet) if own_trainer else None
    assert lp.quantize(module, images(), trainer=trainer) is module
    low, high = ranges(module)["conv"].input or (0.0, 0.0)
    x = torch.cat([x for x, _ in images()])
    assert x.min() <= low < 0 < high <= x.max()
    assert high - low > 0.5 * (x.max() - x.min())
    assert all(torch.equal(value, weights[key]) for key, value in module.state_dict().items())
    assert [entry.note for entry in entries(module) if entry.quantized][:1] == ["int8, its batch norm folded"]
    assert [entry.name for entry in entries(module) if not entry.quantized] == ["rare"]
    with torch.no_grad():
        out = module.eval()(image=x)
        assert torch.equal(to_qdq(module)(image=x), out)
        expected = lp.unprepare(module)(image=x)
    assert 0 < (out - expected).norm() / expected.norm() < 0.05
    if trainer is not None:
        assert "Quantize" not in [type(callback).__name__ for callback in trainer.callbacks]


class TwoInputs(nn.Module):
    """Takes what only a data loader with labels gives, by position or by name."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
        return self.left(a) + self.right(b) * scale


@pytest.mark.parametrize("form", ["tuple", "mapping"])
def test_any_module_is_called_with_its_batches(form: str) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(8, 4), torch.randn(8, 4)
    batch = (a, b, torch.zeros(8)) if form == "tuple" else {"a": a, "b": b}
    net = TwoInputs().train()
    lp.quantize(net, [batch])
    assert net.training
    low, high = ranges(net)["left"].input or (0.0, 0.0)
    assert a.min() <= low
    assert high <= a.max()


def test_calibrating_again_forgets() -> None:
    net = nn.Sequential(nn.Linear(4, 2))
    lp.quantize(net, [torch.tensor([[1.0, 2.0, 3.0, 400.0]])])
    lp.quantize(net, [torch.tensor([[0.0, 0.1, 0.2, 0.3]])])
    assert (ranges(net)["0"].input or (0, 9))[1] <= 0.31


def failing(kind: str) -> tuple[nn.Module, Any, str]:
    net = nn.Sequential(nn.Linear(4, 2))
    return {
        "nan": (
            net,
            [torch.full((2, 4), float("nan"))],
            r"infinite or NaN values in calibration: the input of 0; .* ignore=",
        ),
        "nan weight": (_with_nan(nn.Linear(4, 2)), [torch.ones(2, 4)], r"in calibration: the weight of 0; "),
        "empty": (net, [], "calibration reached no layer; pass a loader"),
        "elsewhere": (nn.ModuleDict({"a": nn.Identity(), "b": net}), [], "calibration reached no layer"),
        "no layer": (nn.Sequential(nn.ReLU()), [torch.ones(2, 4)], "no layer that scheme='int8' can quantize"),
        "error": (net, [torch.ones(2, 5)], "shapes"),
    }[kind]


def _with_nan(layer: nn.Linear) -> nn.Module:
    with torch.no_grad():
        layer.weight[1, 2] = float("nan")
    return nn.Sequential(layer)


@pytest.mark.parametrize("kind", ["nan", "nan weight", "empty", "elsewhere", "no layer", "error"])
def test_failures_leave_the_module_as_it_was(kind: str) -> None:
    net, loader, message = failing(kind)
    with pytest.raises((ValueError, RuntimeError), match=message):
        lp.quantize(net, loader)
    assert preparation(net) is None


class Masked(nn.Linear):
    """Its last output is minus infinity, as masked scores are."""

    fill = -torch.inf

    def forward(self, input: Tensor) -> Tensor:
        """Rows of scores."""
        return super().forward(input).index_fill(1, torch.tensor([self.out_features - 1]), self.fill)


def test_a_layer_with_infinite_outputs_stays_in_float(tmp_path: Path) -> None:
    torch.manual_seed(0)
    masked, x = Masked(8, 3), torch.randn(16, 4)
    net = nn.Sequential(nn.Linear(4, 8), masked, nn.Softmax(-1), nn.Linear(3, 2))
    lp.quantize(net, [x])
    assert "left in float, because its outputs were infinite or NaN: 1." in lines(entries(net))
    assert {entry.name: entry.quantized for entry in entries(net)} == {"0": True, "1": False, "3": True}
    assert set(ranges(net)) == {"0", "3"}
    made = lp.export(net, x, tmp_path / "m.lpx", runtimes="onnxruntime", precisions=["int8"], rounds=0)
    assert made.best == "onnxruntime-int8"
    assert "left in float: 1, because its outputs were infinite or NaN" in made.manifest["notes"]
    masked.fill = 0.0
    lp.quantize(net, [x])
    assert all(entry.quantized for entry in entries(net)), "another calibration looks again"


@pytest.mark.parametrize("max_drop", ["much", -0.1, "-1%"])
def test_max_drop_is_checked(max_drop: Any, quiet: dict[str, Any]) -> None:
    module = make(pl)
    with pytest.raises(ValueError, match=r"max_drop=.* must be a drop of the metric"):
        lp.quantize(module, images(16), trainer=pl.Trainer(**quiet), max_drop=max_drop)
    assert preparation(module) is None


def test_max_drop_needs_a_metric(quiet: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"needs a metric, and Linear has no validation_step"):
        lp.quantize(nn.Linear(4, 2), [torch.ones(2, 4)], max_drop=0.1)
    trainer = pl.Trainer(
        **{**quiet, "enable_checkpointing": True}, callbacks=[pl.callbacks.ModelCheckpoint(monitor="f1")]
    )
    with pytest.raises(ValueError, match=r"'f1' is none of what validation logged, \['val_acc', 'val_loss'\]"):
        lp.quantize(make(pl), images(16), trainer=trainer, max_drop=0.1)


def test_the_layer_that_cannot_be_quantized_stays_in_float(quiet: dict[str, Any]) -> None:
    """A planted layer: one channel of its input is a thousand times the rest, which a scale per tensor cannot hold."""

    class Planted(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.good, self.bad, self.fine = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 1)
            with torch.no_grad():
                self.good.weight[0] *= 1e4
                self.bad.weight[:, 0] = 0

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            (x,) = batch
            out = self.fine(self.bad(self.good(x)))
            with torch.no_grad():
                wide = self.good.weight.detach(), self.bad.weight.detach(), self.fine.weight.detach()
                hidden = x @ wide[0].T + self.good.bias
                target = (hidden @ wide[1].T + self.bad.bias) @ wide[2].T + self.fine.bias
            self.log("val_loss", (out - target).square().mean().sqrt() / target.std())

    torch.manual_seed(0)
    module = Planted()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(64, 4)), 32)
    lp.quantize(module, loader, trainer=pl.Trainer(**quiet), max_drop=0.1)
    assert [name for name, _, layer in records(module) if not layer.active] == ["bad"]
    assert ("bad", False, "the metric needs it in float") in [entry[:3] for entry in map(_as_tuple, entries(module))]
    (plot,) = section(module).plots
    costs = {series.name: series.points[0][1] for series in plot.series}
    assert max(costs, key=lambda name: costs[name]) == "bad"
    assert costs.keys() == {"good", "bad", "fine"}
    assert set(ranges(module)) == {"good", "fine"}
    report = Report("t", "a", [Run("a", 0)], [FINAL_METRIC], sections=[section(module)])
    assert Report.from_json(report.to_json()).sections == report.sections


def _as_tuple(entry: Any) -> tuple[Any, ...]:
    return entry.name, entry.quantized, entry.note


def test_within_the_budget_nothing_else_is_measured(quiet: dict[str, Any]) -> None:
    module = trained(pl, quiet)
    counted = {"runs": 0}

    class Count(pl.Callback):
        def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
            counted["runs"] += 1

    lp.quantize(module, images(16), trainer=pl.Trainer(**quiet, callbacks=[Count()]), max_drop="50%")
    assert counted["runs"] == 2
    assert all(layer.active for _, _, layer in records(module))


COSTS = {"a": 5.0, "b": 0.2, "c": 3.0, "d": 0.1, "e": 1.0}


@pytest.mark.parametrize("budget", [0.0, 0.05, 0.15, 0.31, 1.2, 1.5, 4.5, 9.0, 10.0])
def test_the_search_finds_the_fewest(budget: float) -> None:
    """Against all subsets, where costs add up."""

    def drop(groups: Set[str]) -> float:
        return sum(COSTS[name] for name in groups)

    found = keep_fewest(list(COSTS), drop, budget)
    sizes = [
        size
        for size in range(6)
        for kept in combinations(COSTS, size)
        if drop(COSTS.keys() - set(kept)) <= budget + 1e-12
    ]
    assert len(found.kept) == min(sizes)
    assert found.drop == pytest.approx(drop(COSTS.keys() - set(found.kept)))
    assert found.drop <= budget


def test_a_group_that_costs_only_alone_is_quantized_after_all() -> None:
    def drop(groups: Set[str]) -> float:
        return 4.0 * ("b" in groups) + 5.0 * (groups == {"a"})

    assert keep_fewest(["a", "b", "c"], drop, 1.0).kept == ("b",)


def test_groups() -> None:
    layers = [f"net.{block}.{layer}" for block in range(10) for layer in range(4)] + ["head"]
    assert list(grouped(layers, 50)) == layers
    assert list(grouped(layers, 12)) == [f"net.{block}" for block in range(10)] + ["head"]
    flat = [f"l{index}" for index in range(30)]
    chunks = grouped(flat, 8)
    assert [name for chunk in chunks.values() for name in chunk] == flat
    assert len(chunks) == 8
    assert budget_of("1 %", -50.0) == 0.5
