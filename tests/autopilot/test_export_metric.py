"""``lp.export`` with ``loader=``: the metric is the artefact's, whatever form its outputs and its batches have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_perf as lp
from lightning_perf.autopilot.export import _ValidationMetric
from lightning_perf.autopilot.export_source import source_of
from lightning_perf.cli.export_command import tell_best
from lightning_perf.deploy.call import describe_call
from lightning_perf.deploy.structures import in_form_of

ORT: dict[str, Any] = {"runtimes": "onnxruntime", "rounds": 0, "precisions": ["fp32"]}
X = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))


class Named(NamedTuple):
    loss: Tensor
    logits: Tensor


class ByAttribute(dict[str, Any]):
    """A mapping with attributes that is made of one mapping, unlike a dataclass."""

    __getattr__ = dict.__getitem__


@dataclass
class Fields(dict[str, Any]):
    """A mapping that is a dataclass: a field that is None is an attribute and no key."""

    loss: Tensor
    hidden: Tensor | None = None
    logits: Tensor | None = None

    def __post_init__(self) -> None:
        self.update({name: value for name, value in vars(self).items() if value is not None})


FORMS: list[Callable[[Tensor, Tensor], Any]] = [
    Named,
    lambda loss, logits: ByAttribute({"loss": loss, "logits": logits}),
    lambda loss, logits: Fields(loss=loss, logits=logits),
]


def scorer(ns: ModuleType, form: Any = Named, *, direct: bool = False) -> Any:
    """Logs the mean of ``out.loss``; ``direct``: past ``forward``."""

    class Scorer(ns.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Any:
            logits = self.net(x)
            return form((logits**2).mean(-1), logits)

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            if direct:
                loss = (self.net(batch[0]) ** 2).mean(-1)
            else:
                loss = self(batch[0]).loss
            self.log("val_loss", loss.mean())

    torch.manual_seed(0)
    return Scorer()


def batches(size: int = 16) -> DataLoader[Any]:
    return DataLoader(TensorDataset(X), batch_size=size)


def measured(module: Any, x: Tensor = X) -> float:
    return float((module.net(x) ** 2).mean().detach())


def test_a_metric_that_never_runs_the_artefact_is_no_measurement(ns: ModuleType, tmp_path: Path) -> None:
    module = scorer(ns, direct=True)
    made = lp.export(module, X, tmp_path / "m.lpx", loader=batches(), **ORT)
    assert made.manifest["metric"] is None
    assert made.manifest["variants"]["onnxruntime-fp32"]["metric"] is None
    words = "val_loss is not measured: validation_step does not call forward()"
    assert [note for note in made.manifest["notes"] if words in note]
    assert words in str(made.report)
    with pytest.raises(ValueError, match=r"max_drop=0\.1 needs .* does not call forward\(\).*method="):
        lp.export(module, X, tmp_path / "n.lpx", loader=batches(), max_drop=0.1, **ORT)
    assert not (tmp_path / "n.lpx").exists()


@pytest.mark.parametrize("direct", [False, True])
def test_garbage_shows_in_the_metric_or_it_is_said_that_it_would_not(ns: ModuleType, direct: bool) -> None:
    module = scorer(ns, direct=direct)
    call = describe_call(module, (X,))
    metric = _ValidationMetric(module, source_of(module, call, [[X]], ["fp32"])[0], batches(), None)
    found = metric(lambda x: Named(torch.full((len(x),), 1e6), torch.zeros(len(x), 2)))
    if direct:
        assert found == pytest.approx(measured(module))
        assert "does not call forward()" in str(metric.unmeasured)
    else:
        assert found == pytest.approx(1e6)
        assert metric.unmeasured is None


@pytest.mark.parametrize("form", FORMS, ids=["named tuple", "attributes", "dataclass"])
def test_outputs_with_attributes_are_measured(ns: ModuleType, form: Any, tmp_path: Path) -> None:
    module = scorer(ns, form)
    made = lp.export(module, X, tmp_path / "m.lpx", loader=batches(), max_drop=0.01, **ORT)
    entry = made.manifest["variants"]["onnxruntime-fp32"]
    assert entry["passed"], entry["reason"]
    assert entry["metric"] == pytest.approx(measured(module), rel=1e-5)


def test_forms_are_those_of_the_example() -> None:
    out = in_form_of(Fields(X), {"loss": 1})
    assert type(out) is Fields
    assert (out.loss, out.hidden) == (1, None)
    assert in_form_of({"a": [Named(X, X)]}, {"a": [(1, 2)]})["a"][0].logits == 2
    with pytest.raises(AttributeError, match=r"has no 'hidden', only \['loss'\]"):
        _ = in_form_of(ByAttribute(loss=X), {"loss": 1}).hidden


def test_the_metric_may_be_of_any_validation_loader(ns: ModuleType, tmp_path: Path) -> None:
    module = scorer(ns)
    loaders = [batches(), DataLoader(TensorDataset(3 * X), batch_size=16)]
    made = lp.export(module, X, tmp_path / "m.lpx", loader=loaders, metric="val_loss/dataloader_idx_1", **ORT)
    assert made.manifest["metric"] == pytest.approx(measured(module, 3 * X), rel=1e-5)


def test_max_drop_without_a_metric_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"max_drop=0\.1 needs a metric; pass loader="):
        lp.export(nn.Linear(8, 2), X, tmp_path / "m.lpx", max_drop=0.1)
    assert list(tmp_path.iterdir()) == []


class Pooled(nn.Module):
    """Takes sequences of any length, but its graph only those of the example."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).mean(1)


def test_batches_of_other_sizes_are_left_out_of_the_calibration(tmp_path: Path) -> None:
    padded: Any = DataLoader([torch.randn(4, length, 8) for length in (5, 7, 5)], batch_size=None)  # type: ignore[arg-type]
    made = lp.export(
        Pooled(), padded, tmp_path / "m.lpx", runtimes="onnxruntime", rounds=0, precisions=["fp32", "int8"]
    )
    assert {name: entry["reason"] for name, entry in made.manifest["variants"].items()} == {
        "onnxruntime-fp32": None,
        "onnxruntime-int8": None,
    }
    notes = made.manifest["notes"]
    assert [note for note in notes if note.startswith("1 of 3 calibration batches are left out")]
    assert [note for note in notes if "ranges are those of 8 samples" in note]


def test_a_partial_batch_fits_where_the_batch_may_vary() -> None:
    call = describe_call(Pooled(), (torch.ones(4, 5, 8),))
    assert [call.fits([torch.ones(*shape)]) for shape in ((2, 5, 8), (4, 6, 8), (4, 5))] == [True, False, False]
    fixed = replace(call, batched=(False,))
    assert [fixed.fits([torch.ones(*shape)]) for shape in ((4, 5, 8), (2, 5, 8))] == [True, False]


def test_the_command_fails_where_nothing_passed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = iter([0.9, 0.1, 0.9, 0.9])
    bad, good = (
        lp.export(nn.Linear(8, 2), X, tmp_path / name, metric=lambda run: next(scores), max_drop=0.1, **ORT)
        for name in ("bad.lpx", "good.lpx")
    )
    assert tell_best(bad) == 1
    assert "no variant passed its checks (onnxruntime-fp32: its <lambda> is 0.1 against 0.9" in capsys.readouterr().err
    assert tell_best(good) == 0
    assert "is onnxruntime-fp32" in capsys.readouterr().out
