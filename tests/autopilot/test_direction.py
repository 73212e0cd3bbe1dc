"""Which direction of a metric is better: the caller's word, then the user's own callbacks and schedulers, then the name."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_perf as lp
from lightning_perf.autopilot.direction import better, direction_of, modes_of_own_trainer, monitored_modes
from lightning_perf.quantization.layers import records

_LOWER = (
    "val_loss valLoss val_MSELoss val/rmse val_mae val_MeanSquaredError val_MeanAbsolutePercentageError val_nrmse "
    "val/WordErrorRate val_wer val_cer val_nll val_NLL val_ppl val_perplexity val_bits_per_byte val_bpb val_ce "
    "val_cross_entropy val_FID val_fid val_FrechetInceptionDistance val_distance val_dist KLDivergence val_kl val_kld "
    "val_ece val_CalibrationError val_brier val_hamming val_HammingDistance val_hinge val_WordInfoLost val_log_cosh_error"
)
_HIGHER = (
    "val_acc val_f1 val_MulticlassAccuracy val_BLEUScore val_AUROC val_R2Score val_CosineSimilarity val_lossless_ratio "
    "val_score val_psnr val_WordInfoPreserved"
)
ORT: dict[str, Any] = {"runtimes": "onnxruntime", "precisions": ["fp32"], "rounds": 0}


def data() -> DataLoader[Any]:
    torch.manual_seed(0)
    return DataLoader(TensorDataset(torch.randn(32, 4)), 16)


def scored(ns: ModuleType, *, plateau: str | None = None) -> Any:
    """Logs ``val_score``, whose name says nothing: 1 plus the distance to what its weights gave when it was made."""

    class Scored(ns.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.net = nn.Linear(4, 2)
            self.fixed = [self.net.weight.detach().clone(), self.net.bias.detach().clone()]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return self(batch[0]).square().mean()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            wanted = nn.functional.linear(batch[0], *self.fixed)
            self.log("val_score", 1.0 + (self(batch[0]) - wanted).abs().mean())

        def train_dataloader(self) -> Any:
            return data()

        def val_dataloader(self) -> Any:
            return data()

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            if plateau is None:
                return optimizer
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode=plateau)  # type: ignore[arg-type]
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_score"}}

    return Scored()


_NAMES = [(name, "min") for name in _LOWER.split(" ")] + [(name, "max") for name in _HIGHER.split(" ")]


@pytest.mark.parametrize(("name", "expected"), [*_NAMES, (None, "max")])
def test_directions_told_from_the_words_of_a_name(name: str | None, expected: str) -> None:
    assert better(name) == expected


def test_who_is_asked_first() -> None:
    found = [
        direction_of("val_score", "max", {"val_score": "min"}),
        direction_of("val_score", None, {"val_score": "min"}),
    ]
    found += [direction_of("val_score", None, {"val_loss": "min"}), direction_of("val_loss", None)]
    assert [one.mode for one in found] == ["max", "min", "max", "min"]
    assert [str(one).split(", ", 1)[1] for one in found] == [
        "as mode says",
        "as what monitors it in the Trainer says",
        "guessed from the name; say mode='min' if it is not",
        "guessed from the name; say mode='max' if it is not",
    ]


def test_the_user_s_callbacks_are_asked(ns: ModuleType) -> None:
    score = ns.callbacks.ModelCheckpoint(monitor="val_score", mode="min")
    loss = ns.callbacks.EarlyStopping(monitor="val_loss", mode="max")
    trainer = ns.Trainer(callbacks=[score, loss], logger=False, accelerator="cpu", enable_model_summary=False)
    assert monitored_modes(trainer) == {"val_score": "min", "val_loss": "max"}
    module = scored(ns)
    assert modes_of_own_trainer(module) == modes_of_own_trainer(nn.Linear(1, 1)) == {}
    module.trainer = trainer
    assert modes_of_own_trainer(module)["val_score"] == "min"


@pytest.mark.parametrize("by", ["early stopping", "plateau", "mode", "name"])
def test_compare_takes_the_user_s_direction(by: str, ns: ModuleType, quiet: dict[str, Any]) -> None:
    """Also for the time to a target: with "lower is better" the score, above 1, never gets to 0.5."""

    def fit() -> Any:
        stop = ns.callbacks.EarlyStopping(monitor="val_score", mode="min", patience=9)
        module = scored(ns, plateau="min" if by == "plateau" else None)
        return ns.Trainer(**quiet, max_epochs=1, callbacks=[stop] if by == "early stopping" else []), module

    report = lp.compare({"a": fit, "b": fit}, pairs=1, target=0.5, mode="min" if by == "mode" else None)
    assert report.quantity("final_metric").better == ("higher" if by == "name" else "lower")
    assert (report.runs[0].value("seconds_to_target") is None) == (by != "name")
    says = {"mode": "as mode says", "name": "guessed from the name; say mode='min' if it is not"}
    how = says.get(by, "as what monitors it in the Trainer says")
    assert f"Metric: val_score; {'higher' if by == 'name' else 'lower'} is better, {how}." in report.notes
    assert lp.Report.from_json(report.to_json()).runs == report.runs


def test_a_race_keeps_the_direction_of_the_early_stopping_that_it_takes_out(
    ns: ModuleType, quiet: dict[str, Any]
) -> None:
    def fit() -> Any:
        stop = ns.callbacks.EarlyStopping(monitor="val_score", mode="min")
        return ns.Trainer(**quiet, max_epochs=2, callbacks=[stop]), scored(ns)

    report = lp.race(fit, optimizers=[{"optimizer": "sgd", "lr": 0.01}], budget="4 steps", seeds=1)
    assert report.quantity("final_metric").better == "lower"
    assert "Metric: val_score; lower is better, as what monitors it in the Trainer says." in report.notes


@pytest.mark.parametrize("by", ["trainer", "fit", "mode", "name"])
def test_quantize_limits_the_drop_in_the_user_s_direction(by: str, ns: ModuleType, quiet: dict[str, Any]) -> None:
    """Rounding raises the score; that is a drop where lower is better, and the layer stays in float."""
    module = scored(ns)
    stop = ns.callbacks.EarlyStopping(monitor="val_score", mode="min")
    trainer = ns.Trainer(**quiet, max_epochs=1, callbacks=[stop])
    if by == "fit":
        module.trainer = trainer
    lp.quantize(
        module,
        data(),
        trainer=trainer if by == "trainer" else None,
        max_drop=1e-6,
        mode="min" if by == "mode" else None,
    )
    assert [layer.active for _, _, layer in records(module)] == [by == "name"]
    if by == "fit":
        assert module.trainer is trainer, "the quiet Trainer of the validation does not stay"


@pytest.mark.parametrize("by", ["fit", "mode", "name"])
def test_export_says_which_direction_it_took(by: str, ns: ModuleType, quiet: dict[str, Any], tmp_path: Path) -> None:
    module = scored(ns)
    if by == "fit":
        stop = ns.callbacks.EarlyStopping(monitor="val_score", mode="min")
        ns.Trainer(**quiet, max_epochs=1, callbacks=[stop]).fit(module)
    mode = "min" if by == "mode" else None
    made = lp.export(module, data(), tmp_path / "m.lpx", loader=data(), mode=mode, **ORT)
    (note,) = (note for note in made.manifest["notes"] if note.startswith("Metric: "))
    starts = {
        "fit": "lower is better, as what monitors it in the Trainer says",
        "mode": "lower is better, as mode says",
        "name": "higher is better, guessed from the name; say mode='min' if it is not",
    }
    assert note == f"Metric: val_score; {starts[by]}."


@pytest.mark.parametrize(("mode", "passes"), [("min", True), ("max", False)])
def test_export_rejects_by_mode(mode: Any, passes: bool, tmp_path: Path) -> None:
    """The module scores 1, its artefact 0.5: less is a loss only where higher is better."""
    scores = iter([1.0, 0.5])
    made = lp.export(
        nn.Linear(4, 2),
        torch.randn(8, 4),
        tmp_path / "m.lpx",
        metric=lambda run: next(scores),
        mode=mode,
        max_drop=0.1,
        **ORT,
    )
    assert made.manifest["variants"]["onnxruntime-fp32"]["passed"] == passes


def test_a_mode_that_is_none_or_of_nothing_is_refused(ns: ModuleType, tmp_path: Path) -> None:
    net, x, path = nn.Linear(4, 2), torch.randn(8, 4), tmp_path / "m.lpx"
    wrong: Any = "lower"
    with pytest.raises(ValueError, match="mode='lower' is unknown; it is 'max', 'min' or None"):
        lp.export(net, x, path, metric=lambda run: 1.0, mode=wrong)
    with pytest.raises(ValueError, match="mode='min' is of a metric and there is none; pass loader="):
        lp.export(net, x, path, mode="min")
    with pytest.raises(ValueError, match="mode='lower' is unknown; it is 'max', 'min' or None"):
        lp.quantize(scored(ns), data(), max_drop=0.1, mode=wrong)
    with pytest.raises(ValueError, match="mode='min' is of the metric that max_drop limits"):
        lp.quantize(scored(ns), data(), mode="min")
