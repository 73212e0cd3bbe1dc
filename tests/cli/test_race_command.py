"""``lightning-perf race``: runs in processes, a folder to go on from, a config that ``fit`` accepts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import lightning_perf as lp
from lightning_perf.autopilot import race as race_module
from lightning_perf.autopilot.candidates import BASELINE
from lightning_perf.cli import main
from lightning_perf.cli.race_command import candidate_of
from lightning_perf.cli.trainer_cli import trainer_command
from lightning_perf.report import Run

ROOT = Path(__file__).parents[2]
MODULE = '''
import lightning.pytorch as pl
import torch


class Line(pl.LightningModule):
    """A straight line, with a learning rate that is too small."""

    def __init__(self, lr: float = 1e-3) -> None:
        super().__init__()
        self.lr = lr
        self.net = torch.nn.Linear(1, 1)

    def step(self, batch):
        return torch.nn.functional.mse_loss(self.net(batch), 3 * batch + 1)

    def training_step(self, batch, batch_idx):
        return self.step(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.step(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class Data(pl.LightningDataModule):
    def __init__(self, samples: int = 32) -> None:
        super().__init__()
        self.x = torch.linspace(-1, 1, samples).unsqueeze(1)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(self.x, batch_size=4, shuffle=True)

    def val_dataloader(self):
        return torch.utils.data.DataLoader(self.x, batch_size=8)
'''
SGD = "{optimizer: sgd, lr: 5e-2, schedule: warmup_linear}"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config beside its module, in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # of the processes, which do not start in this checkout
    (tmp_path / "race_line.py").write_text(MODULE)
    trainer = {
        "max_epochs": 20,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
        "callbacks": [{"class_path": "lightning_perf.FastLogging"}],
    }
    path = tmp_path / "line.yaml"
    parts = {"trainer": trainer, "model": {"class_path": "race_line.Line"}, "data": {"class_path": "race_line.Data"}}
    path.write_text(yaml.safe_dump(parts))
    return path


def race(*arguments: str) -> int:
    with pytest.raises(SystemExit) as done:
        main(["race", "--config", "line.yaml", "--budget", "16 steps", "--seeds", "1", *arguments])
    assert isinstance(done.value.code, int)
    return done.value.code


@pytest.mark.filterwarnings("ignore")
def test_the_command(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three processes: the probe, the user's own, the candidate. Then its config, fitted as a user would."""
    files = ["--json", "r.json", "--html", "r.html", "--yaml", "best.yaml"]
    assert race("--optimizer", SGD, "--metric", "val_loss", *files) == 0
    printed = capsys.readouterr().out
    assert "sgd lr=0.05 warmup_linear" in printed
    report = lp.Report.from_json(tmp_path / "r.json")
    candidate = "sgd lr=0.05 warmup_linear"
    assert report.variants == (BASELINE, candidate)
    assert report.values("final_metric", candidate) < report.values("final_metric", BASELINE)
    assert report.values("peak_memory", candidate)[0] is not None
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")
    # With one seed nothing is resolved: the pick is the user's own config, as it was.
    assert yaml.safe_load((tmp_path / "best.yaml").read_text()) == yaml.safe_load(config.read_text())
    assert (tmp_path / "race_line" / "winner.yaml").exists()

    cli = trainer_command(["fit", "--config", report.configs[candidate]])
    assert [type(callback).__name__ for callback in cli.trainer.callbacks[:2]] == ["FastLogging", "OptimizerFactory"]
    factory: Any = cli.trainer.callbacks[1]
    assert (factory.row.name, factory.lr, factory.schedule) == ("sgd", 0.05, "warmup_linear")
    assert cli.trainer.global_step == 160


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Runs without processes; the jobs they were asked for. A job beyond ``stop_after`` is interrupted."""
    jobs: list[dict[str, Any]] = []

    def run(job: dict[str, Any], *, quiet: bool = True) -> Run:
        if len(jobs) == 3:
            jobs.append({})
            raise KeyboardInterrupt
        jobs.append(job)
        score = 0.5 if job["variant"] == BASELINE else 0.1
        score += 0.01 * job["seed"]
        quantities = {"final_metric": score, "steps": job["pace"]["steps"], "train_seconds": 1.0}
        curves: Any = {"val_loss": [(1.0, score)], "loss": [(0.1, score)]}
        return Run(job["variant"], job["seed"], job["position"], quantities, curves)

    monkeypatch.setattr(race_module, "run_in_process", run)
    return jobs


def test_an_interrupted_race_goes_on(
    config: Path, scripted: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--optimizer", SGD, "--seeds", "3", "--folder", "right here", "--trainer.limit_val_batches=2"]
    assert race(*arguments) == 130
    assert "The race is not over; go on with it: add --resume --folder 'right here'" in capsys.readouterr().out
    assert not (tmp_path / "right here" / "winner.yaml").exists()
    assert scripted[0]["args"] == ["--config", "line.yaml", "--trainer.limit_val_batches=2"]
    candidate = next(job for job in scripted if job and job["variant"] != BASELINE)
    assert candidate["args"][1] == "right here/configs/sgd-lr-0.05-warmup_linear.yaml"

    assert race(*arguments, "--resume") == 0
    assert len(scripted) == 3 + 1 + 4  # three, the interrupted one, the four that were left
    winner = yaml.safe_load((tmp_path / "right here" / "winner.yaml").read_text())
    assert winner["trainer"]["callbacks"][1]["init_args"] == {
        "optimizer": "sgd",
        "lr": 0.05,
        "schedule": "warmup_linear",
    }
    assert json.loads((tmp_path / "right here" / "race.json").read_text())["settings"]["budget"] == "16 steps"


def test_a_winning_baseline_can_be_fitted_from_where_it_is_kept(
    config: Path, scripted: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With its sections, which lay beside the config, and with the arguments that it raced with."""
    whole = yaml.safe_load(config.read_text())
    Path("model.yaml").write_text(yaml.safe_dump(whole["model"]))
    config.write_text(yaml.safe_dump({**whole, "model": "model.yaml"}))
    assert race("--optimizer", SGD, "--yaml", "far/best.yaml", "--trainer.limit_val_batches=2") == 0
    out = capsys.readouterr().out
    assert "lightning-perf fit --config far/best.yaml --trainer.limit_val_batches=2" in out
    assert "All ran with --trainer.limit_val_batches=2." in " ".join(out.split())
    for kept in (Path("race_line/winner.yaml"), Path("far/best.yaml")):
        assert yaml.safe_load(kept.read_text()) == whole
    assert "--trainer.limit_val_batches=2" in Path("race_line/winner.yaml").read_text().splitlines()[0]


def test_mistakes(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert race("--optimizer", "adamv") == 2
    assert "Unknown optimizer 'adamv'" in capsys.readouterr().err
    assert race("--trainer.callbacks=[]") == 2
    assert "would replace the candidate's callback" in capsys.readouterr().err


def test_candidates_from_words() -> None:
    assert candidate_of("muon") == "muon"
    assert candidate_of("{optimizer: sgd, lr: [1e-3, 0.1], options: {nesterov: true}}") == {
        "optimizer": "sgd",
        "lr": [1e-3, 0.1],
        "options": {"nesterov": True},
    }
