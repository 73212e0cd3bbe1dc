"""What every recipe promises, found by folder: plain Lightning code, one YAML per lever, a README that names them."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.recipes.small import CONFIGS, RECIPES, ROOT

LOSSLESS = ["OptimizerFactory", "FastLogging", "ChannelsLast", "MallocTuning", "ExactResume"]
LEVERS = {"fast": "AutoMixedPrecision", "qat": "QuantizationAwareTraining", "pruned": "MagnitudePruning"}
LEVERS |= {"channels": "ChannelPruning"}


def read(config: Path) -> dict[str, Any]:
    return yaml.safe_load(config.read_text())


def name_of(callback: dict[str, Any]) -> str:
    return callback["class_path"].removeprefix("lightning_perf.")


def imported(source: Path) -> set[str]:
    """Top-level names of the absolute imports of a file, lazy ones too."""
    names = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add((node.module or "").partition(".")[0])
    return names


def test_recipes_are_found() -> None:
    assert {"image_classification", "language_model", "tabular"} <= set(RECIPES)


@pytest.mark.parametrize("recipe", RECIPES)
def test_code_knows_nothing_of_the_library(recipe: str) -> None:
    sources = sorted((ROOT / "recipes" / recipe).rglob("*.py"))
    assert {"__init__.py", "data.py", "module.py"} <= {source.name for source in sources}
    for source in sources:
        assert imported(source) & {"lightning_perf", "lightning_perf_recipes", "recipes"} == set(), source


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_lever_is_lossless_and_one_entry(config: Path) -> None:
    """Every YAML says what ``baseline.yaml`` says, but for callbacks; ddp also for devices, strategy and logging steps."""
    base, ours = read(config.with_name("baseline.yaml")), read(config)
    assert base["trainer"].pop("callbacks") == []
    callbacks = ours["trainer"].pop("callbacks")
    if config.stem == "ddp":
        assert ours["trainer"].pop("strategy")["class_path"] == "lightning_perf.PerfDDP"
        assert (ours["trainer"].pop("devices"), base["trainer"].pop("devices")) == (2, 1)
        if "log_every_n_steps" in base["trainer"]:  # once an epoch, which has half the steps
            assert ours["trainer"].pop("log_every_n_steps") == base["trainer"].pop("log_every_n_steps") // 2
    assert ours == base

    if config.stem == "baseline":
        assert callbacks == []
        return
    assert [name_of(callback) for callback in callbacks[:5]] == LOSSLESS
    assert callbacks[0].get("init_args", {}) == ({"optimizer": "auto"} if config.stem == "auto" else {})
    assert all("init_args" not in callback for callback in callbacks[1:5])
    rest = [name_of(callback) for callback in callbacks[5:]]
    assert rest == ([LEVERS[config.stem]] if config.stem in LEVERS else [])


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_files_name_one_another(config: Path) -> None:
    """The command in the head of a YAML is its own path; the README has that command and a row of the table."""
    command = f"lightning-perf fit --config recipes/{config.parent.name}/{config.name}\n"
    assert f"#   {command}" in config.read_text()
    readme = config.with_name("README.md").read_text()
    assert command in readme
    assert f"| `{config.name}` |" in readme
    frozen = "# FROZEN: every comparison of this recipe is against these lines" in config.read_text()
    assert frozen == (config.stem == "baseline")
