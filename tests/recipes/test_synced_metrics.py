"""What recipes log of a validation or test is that of all processes: every value asks for it, and two processes agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import lightning.pytorch as pl
import pytest
from torchmetrics import Metric

from lightning_perf.cli.trainer_cli import trainer_command
from tests.ranks import run
from tests.recipes.small import CONFIGS, ROOT, arguments
from tests.recipes.synced_worker import ITEMS, STRATEGIES, build, evaluate, write
from tests.recipes.tones import write_tones

BASELINES = [config for config in CONFIGS if config.stem == "baseline"]
SYNTHESIS = ROOT / "recipes" / "speech" / "synthesis" / "baseline.yaml"
SMALL = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.logger=false"]
SMALL += ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


def logged(config: Path, folder: Path) -> dict[str, tuple[bool, bool]]:
    """Names that a batch of validation and one of the test log: whether they are plain values, and whether synchronised."""
    if config == SYNTHESIS:
        tiny = [f"--data.root={write_tones(folder / 'wavs')}", "--data.split_by=speaker", "--data.batch_size=4"]
    else:
        tiny = arguments(config, folder)
    cli = trainer_command(["--config", str(config), *SMALL, *tiny], run=False)
    cli.trainer.limit_val_batches = cli.trainer.limit_test_batches = 1
    found: dict[str, tuple[bool, bool]] = {}
    stock = pl.LightningModule.log

    def log(module: Any, name: str, value: Any, *args: Any, sync_dist: bool = False, **kwargs: Any) -> None:
        found[name] = (not isinstance(value, Metric), sync_dist)
        stock(module, name, value, *args, sync_dist=sync_dist, **kwargs)

    with mock.patch.object(pl.LightningModule, "log", log):
        cli.trainer.validate(cli.model, cli.datamodule, verbose=False)
        if type(cli.model).test_step is not pl.LightningModule.test_step:
            cli.trainer.test(cli.model, cli.datamodule, verbose=False)
    return found


@pytest.mark.parametrize("config", [*BASELINES, SYNTHESIS], ids=lambda path: path.parent.name)
@pytest.mark.filterwarnings("ignore")
def test_plain_values_of_evaluations_are_synchronised(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchmetrics objects do it by themselves; every tensor must ask for it, or rank zero's share is logged alone."""
    monkeypatch.chdir(tmp_path)
    found = logged(config, tmp_path)
    plain = {name for name, (is_plain, _) in found.items() if is_plain}
    assert "val_loss" in plain
    assert ("test_loss" in plain) == any(name.startswith("test_") for name in found)
    assert {name for name in plain if not found[name][1]} == set()


@pytest.mark.ddp
@pytest.mark.slow  # half a minute of processes: make test-all
def test_two_processes_log_what_one_logs(tmp_path: Path) -> None:
    """Over the same items, in batches of another composition, with an uneven last one and with different weights."""
    write(tmp_path)
    alone = {recipe: evaluate(recipe, tmp_path, devices=1) for recipe in ITEMS}
    together = run("tests.recipes.synced_worker", tmp_path / "results.json", 2)
    for recipe, expected in alone.items():
        data: Any = build(recipe, tmp_path)[1]
        data.setup("fit")
        parts = data.pairs if recipe == "translation" else data.parts
        assert [len(parts["val"]), len(parts["test"])] == [ITEMS[recipe]] * 2
        for strategy in STRATEGIES:
            found = together[f"{recipe}-{strategy}"]
            assert "error" not in found, found["error"]
            names = [name for name in expected if name.endswith(("_loss", "_distance", "_error"))]
            assert len(names) >= 2
            for name in names:
                assert found[name] == pytest.approx(expected[name], rel=1e-5), (recipe, strategy, name)
