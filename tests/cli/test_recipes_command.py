"""``lightning-perf recipes``: what it lists, and copies that run without the original."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lightning_perf.cli import main
from lightning_perf.cli.recipes_command import copy_recipe, find_recipes
from tests.recipes.small import RECIPES, ROOT, arguments

WITHOUT_THE_ORIGINAL = """
import sys
sys.modules["lightning_perf_recipes"] = sys.modules["recipes"] = None  # importing either is an error
from lightning_perf.cli import main
main(sys.argv[1:])
"""


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    with pytest.raises(SystemExit) as done:
        main(["recipes"])
    assert done.value.code == 0
    return capsys.readouterr().out.splitlines()


def test_the_list_has_one_full_line_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    listed = lines(capsys)
    assert [line.split()[0] for line in listed] == RECIPES
    for line, recipe in zip(listed, RECIPES, strict=True):
        levers = sorted({path.stem for path in (ROOT / "recipes" / recipe).glob("*.yaml")} - {"baseline"})
        assert f". Levers: {', '.join(levers)}. Data: " in line
        assert "README" not in line, f"the docstring of recipes/{recipe}/__init__.py has no paragraph `Data: ...`"
        assert line.endswith(".")


def test_a_listed_recipe_is_not_imported() -> None:
    code = (
        "import sys; from lightning_perf.cli.recipes_command import find_recipes; find_recipes(); print(*sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert not [name for name in out.split() if name.partition(".")[0] in ("recipes", "lightning_perf_recipes")]


@pytest.mark.parametrize("recipe", RECIPES)
def test_nothing_in_a_copy_points_back(recipe: str, tmp_path: Path) -> None:
    source, target = ROOT / "recipes" / recipe, tmp_path / "new" / "copy"
    code = copy_recipe(recipe, target)
    assert code == target / recipe
    beside = {path.name for path in source.iterdir() if path.suffix in (".yaml", ".md")}
    assert {path.name for path in target.iterdir()} == beside | {recipe}
    ours = {
        path.relative_to(source) for path in source.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }
    assert {path.relative_to(code) for path in code.rglob("*") if path.is_file()} == {
        path for path in ours if str(path) not in beside
    }
    for path in target.glob("*.yaml"):
        original = yaml.safe_load((source / path.name).read_text())
        copied = yaml.safe_load(path.read_text())
        for part in ("model", "data"):
            assert copied[part].pop("class_path") == original[part].pop("class_path").partition(".")[2]
        assert copied == original
    for path in target.rglob("*.*"):
        if path.is_file():
            assert not re.search(rf"lightning_perf_recipes|recipes/{recipe}/", path.read_text()), path


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_copy_runs_without_the_original(recipe: str, tmp_path: Path) -> None:
    """Two batches from the folder, where neither name of the package with the recipes can be imported."""
    copy_recipe(recipe, tmp_path / "copy")
    (tmp_path / "data").mkdir()
    small = arguments(tmp_path / recipe / "lossless.yaml", tmp_path / "data")
    fit = ["fit", "--config", "lossless.yaml", "--trainer.accelerator=cpu", "--trainer.fast_dev_run=2", *small]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_THE_ORIGINAL, *fit],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        cwd=tmp_path / "copy",
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "`Trainer.fit` stopped: `max_steps=2` reached." in done.stdout + done.stderr


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "baseline.yaml").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    for name, words in (("full", "is a folder that is not empty"), ("file", "is a file")):
        with pytest.raises(SystemExit):
            main(["recipes", "copy", "tabular", str(tmp_path / name)])
        assert f"{words}, and nothing is overwritten: name a new or an empty folder" in capsys.readouterr().err
    assert [path.read_text() for path in (tmp_path / "full").iterdir()] == ["mine"]
    with pytest.raises(SystemExit) as done:
        main(["recipes", "copy", "tabular", str(tmp_path / "empty")])
    assert done.value.code == 0
    assert f"cd {tmp_path / 'empty'} && lightning-perf fit --config baseline.yaml" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["recipes", "copy", "tabular", str(tmp_path / "my own; recipe")])
    assert f"cd '{tmp_path}/my own; recipe' && lightning-perf fit" in capsys.readouterr().out


def test_an_unknown_recipe_lists_the_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["recipes", "copy", "tabula", str(tmp_path / "new")])
    assert f"recipe 'tabula' is unknown; the recipes are {', '.join(RECIPES)}." in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_an_installation_without_recipes_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="the package lightning_perf_recipes is not installed"):
        find_recipes()
