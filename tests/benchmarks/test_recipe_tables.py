"""The tables of the recipes: what a run weighs and costs once exported, the target, the lines of the table."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lightning_perf as lp
from benchmarks import recipe_tables
from benchmarks.recipe_latency import latencies
from benchmarks.recipe_tables import END, START, into_readme, measured, table, with_target
from benchmarks.recipe_worker import deployed
from lightning_perf.report import FINAL_ACCURACY, Report, Run


def runs(variant: str, speeds: list[float], curve: list[list[float]], **more: float) -> list[Run]:
    """One run per speed; validation comes every second."""
    made = []
    for seed, (speed, metrics) in enumerate(zip(speeds, curve, strict=True)):
        points = tuple((float(at + 1), metric) for at, metric in enumerate(metrics))
        quantities = {"samples_per_second": speed, "final_metric": metrics[-1], "peak_memory": 1e6, **more}
        made.append(
            Run(variant, seed, quantities=quantities, curves={"val_acc": points}, notes=("deployed as ort-fp32",))
        )
    return made


@pytest.fixture
def report() -> Report:
    plain = runs(
        "baseline", [100, 110, 105], [[0.5, 0.9], [0.5, 0.8], [0.7, 0.85]], file_bytes=4e5, latency_seconds=1e-3
    )
    fast = runs("fast", [200, 220, 210], [[0.8, 0.9], [0.6, 0.7], [0.9, 0.9]], file_bytes=1e5, latency_seconds=5e-4)
    broken = [Run("qat", seed, error="no such layer\nat all") for seed in range(3)]
    return with_target(Report("t", "baseline", [*plain, *fast, *broken], [FINAL_ACCURACY]), "val_acc")


def test_the_target_is_where_the_worst_baseline_run_ends(report: Report) -> None:
    """0.8: reached by the baseline after 2 s each; by the other after 1 s, never, 1 s."""
    assert report.quantities[1].label == "time to val_acc 80.00%"
    assert report.values("seconds_to_target", "baseline") == (2.0, 2.0, 2.0)
    assert report.values("seconds_to_target", "fast") == (1.0, None, 1.0)


def test_the_table_sets_the_baseline_beside_everything(report: Report) -> None:
    lines = table(report, "tabular").splitlines()
    assert lines[0].startswith(
        "| file | training speed | time to val_acc 80.00% | peak memory | final val_acc | size | lat"
    )
    assert lines[2] == "| `baseline.yaml` | 105 samples/s | 2.0 s | 1 MB | 85.00% | 400 kB | 1.000 ms |"
    assert lines[3].startswith("| `fast.yaml` | 210 samples/s, 2.00x [2.00, 2.00] | 1.0 s in 2 of 3, 2.00x")
    assert "| 100 kB, 4.00x | 0.500 ms, 2.00x |" in lines[3]
    assert lines[4] == "| `qat.yaml` | failed | failed | failed | failed | failed | failed |"
    assert "Medians of 3 seeds" in lines[6]
    assert "with the 75% interval" in lines[6]
    assert "(ort-fp32)" in lines[6]
    assert "Raw samples: `benchmarks/results/recipe_tabular.json`." in lines[8]


def test_what_cannot_be_exported_is_a_sentence_below_and_shortened_runs_are_said() -> None:
    made = runs("baseline", [100], [[0.5]])
    missing = {
        "file_bytes": "not exported to stored: batch is a Graphs",
        "latency_seconds": "not exported to stored: batch is a Graphs",
    }
    made = [dataclasses.replace(run, missing=missing, notes=()) for run in made]
    text = table(with_target(Report("t", "baseline", made, [FINAL_ACCURACY]), "val_acc"), "molecules")
    assert text.splitlines()[2].endswith("| 50.00% | none | none |")
    assert text.count("\n\nNone: not exported to stored: batch is a Graphs\n") == 1
    assert "Runs are shortened: `--trainer.max_epochs=10`." in text


def test_the_page_keeps_what_is_around_the_table(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("# Title\n\ntext\n")
    into_readme(page, "| first |")
    into_readme(page, "| second |")
    assert page.read_text() == f"# Title\n\ntext\n\n## Measured\n\n{START}\n| second |\n\n{END}\n"
    page.write_text("# Title\n\n## Options\n\nmore\n")
    into_readme(page, "| third |")
    assert page.read_text() == f"# Title\n\n## Measured\n\n{START}\n| third |\n\n{END}\n\n## Options\n\nmore\n"


def test_int8_and_zeros_make_a_smaller_file() -> None:
    """Deflated, so that zeros count; a module without an export says why."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 8)).eval()
    data = [torch.randn(32, 64) for _ in range(2)]
    whole, how = deployed(net, data, "fp32")
    assert how[-1] == "deployed as onnxruntime-fp32"
    assert whole["latency_seconds"] > 0
    assert whole["file_bytes"] == pytest.approx(4 * (64 * 256 + 256 + 256 * 8 + 8), rel=0.15)
    assert deployed(net, data, "int8")[0]["file_bytes"] < 0.4 * whole["file_bytes"]
    with torch.no_grad():
        first = net[0].weight
        assert isinstance(first, nn.Parameter)
        first[:230] = 0.0
    assert deployed(net, data, "fp32")[0]["file_bytes"] < 0.3 * whole["file_bytes"]


def test_a_module_that_no_graph_can_hold_is_timed_as_it_is() -> None:
    class Python(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x) if float(x.sum()) > 0 else self.layer(-x)

    found, how = deployed(Python(), [torch.rand(8, 4)], "fp32")
    assert how[0].startswith("not exported to onnxruntime: ")
    assert how[-1] == "deployed as stored-fp32"
    assert found["file_bytes"] > 0


def test_runs_that_were_kept_are_not_run_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Stopped behind its second run, the benchmark goes on with the third, and the table is that of one go."""
    monkeypatch.setattr(recipe_tables, "RECIPES", Path(lp.__file__).parents[1] / "recipes")
    asked: list[tuple[str, int]] = []

    def fit(job: dict[str, Any], worker: str) -> Run:
        if len(asked) == 2 and stops:
            raise KeyboardInterrupt
        asked.append((job["variant"], job["seed"]))
        made = runs(job["variant"], [100.0 + job["seed"]], [[0.5, 0.75]])[0]
        return dataclasses.replace(made, seed=job["seed"])

    monkeypatch.setattr(recipe_tables, "run_in_process", fit)
    stops = True
    with pytest.raises(KeyboardInterrupt):
        measured("tabular", tmp_path / "kept", 2, only=["lossless"])
    stops = False
    report = measured("tabular", tmp_path / "kept", 2, only=["lossless"])
    assert len(asked) == len(set(asked)) == 4
    asked.clear()
    assert (
        table(report, "tabular").splitlines()[2:4]
        == table(measured("tabular", tmp_path / "anew", 2, only=["lossless"]), "tabular").splitlines()[2:4]
    )
    assert len(asked) == 4


def test_latencies_of_files_in_turns(tmp_path: Path) -> None:
    """Each once, by the name of its file; without files there are none."""
    assert latencies(tmp_path) == {}
    for name, width in (("small", 8), ("large", 64)):
        deployed(nn.Sequential(nn.Linear(64, width)).eval(), [torch.rand(8, 64)], "fp32", tmp_path / f"{name}.lpx")
    found = latencies(tmp_path, rounds=5)
    assert found.keys() == {"small", "large"}
    assert min(found.values()) > 0


def test_an_unknown_recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(recipe_tables, "RECIPES", Path(lp.__file__).parents[1] / "recipes")
    with pytest.raises(ValueError, match="'tabula' is no recipe; the recipes are image_classification, language_model"):
        measured("tabula", tmp_path)
