"""``lightning-perf recipes``: list the complete training set-ups that come with the package, and copy one out."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import re
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_PACKAGE = "lightning_perf_recipes"
_BASELINE = "baseline.yaml"
_DATA = "Data:"
_BESIDE = (".yaml", ".md")


@dataclass(frozen=True)
class Recipe:
    """One recipe: its folder, and what the list says about it.

    ``levers`` are the names of its YAML files without the baseline.
    """

    folder: Path
    task: str
    levers: tuple[str, ...]
    data: str

    @property
    def name(self) -> str:
        """The folder's name, which is the recipe's."""
        return self.folder.name

    def line(self, width: int = 0) -> str:
        """One line, with the name padded to ``width``."""
        return f"{self.name:<{width}}  {self.task} Levers: {', '.join(self.levers)}. Data: {self.data}"


def find_recipes() -> dict[str, Recipe]:
    """The recipes of this installation by name: folders with a ``baseline.yaml``. None of them is imported.

    Raises:
        FileNotFoundError: the package was installed without its recipes.

    Example::

        >>> find_recipes()["tabular"].levers
        ('auto', 'channels', 'ddp', 'fast', 'lossless', 'pruned', 'qat')
    """
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            f"the package {_PACKAGE} is not installed; it comes in the wheel of lightning-perf, and in a checkout as a "
            "link to the folder recipes: install lightning-perf again."
        )
    folders = sorted(path.parent for path in Path(spec.submodule_search_locations[0]).glob(f"*/{_BASELINE}"))
    return {folder.name: _described(folder) for folder in folders}


def copy_recipe(name: str, target: str | Path) -> Path:
    """Copy a recipe's YAML files and README into ``target``, and its code into a package of its name beside them.

    Class paths and commands in the copy are those of the copy, so that it runs from ``target`` without the original. YAML
    files of a second task, in a folder below the recipe's, stay with its code.

    Args:
        name: a recipe of :func:`find_recipes`.
        target: a folder that does not exist yet, or is empty.

    Returns:
        The folder with the copied code.

    Raises:
        ValueError: an unknown recipe.
        FileExistsError: ``target`` is a file, or a folder that holds something.

    Example::

        >>> code = copy_recipe("tabular", "mine")
        >>> sorted(path.name for path in code.iterdir())
        ['__init__.py', 'data.py', 'module.py', 'tables.py']
        >>> "class_path: tabular.module.TabularClassifier" in (code.parent / "baseline.yaml").read_text()
        True
    """
    recipes, target = find_recipes(), Path(target)
    if name not in recipes:
        raise ValueError(f"recipe {name!r} is unknown; the recipes are {', '.join(recipes)}.")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        what = "a folder that is not empty" if target.is_dir() else "a file"
        raise FileExistsError(f"{str(target)!r} is {what}, and nothing is overwritten: name a new or an empty folder.")
    source, code = recipes[name].folder, target / name
    shutil.copytree(source, code, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    for path in [path for path in code.rglob("*") if path.suffix in _BESIDE]:
        text = path.read_text(encoding="utf-8").replace(f"{_PACKAGE}.{name}.", f"{name}.")
        text = re.sub(rf"recipes/{name}/(?=\w+/)", f"{name}/", text).replace(f"recipes/{name}/", "")
        path.unlink()
        beside = target if path.parent == code else path.parent
        (beside / path.name).write_text(text, encoding="utf-8")
    return code


def run(args: Sequence[str]) -> int:
    """The command: without a word list the recipes, with ``copy NAME DIR`` copy one."""
    parser = argparse.ArgumentParser(
        "lightning-perf recipes",
        description="List the recipes: a task, one YAML file for each family of levers beside baseline.yaml, and where the "
        "data come from.",
    )
    commands = parser.add_subparsers(dest="command", metavar="copy")
    copy = commands.add_parser("copy", help="copy a recipe, to change it and run it from there")
    copy.add_argument("name", metavar="NAME", help="a recipe of the list")
    copy.add_argument("folder", metavar="DIR", help="a new or empty folder")
    known = parser.parse_args(args)
    try:
        if known.command is None:
            recipes = find_recipes()
            width = max(map(len, recipes), default=0)
            print(*(recipe.line(width) for recipe in recipes.values()), sep="\n")
            return 0
        code = copy_recipe(known.name, known.folder)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(f"{known.name}: YAML files in {code.parent}, code in {code}. Run it there:")
    print(f"  cd {shlex.quote(str(code.parent))} && lightning-perf fit --config {_BASELINE}")
    return 0


def _described(folder: Path) -> Recipe:
    """A recipe by the docstring of its package: the first line is the task, the paragraph after ``Data:`` the source."""
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    task, *paragraphs = text.split("\n\n")
    data = next((one.removeprefix(_DATA) for one in paragraphs if one.startswith(_DATA)), "see README.md.")
    levers = tuple(sorted(path.stem for path in folder.glob("*.yaml") if path.name != _BASELINE))
    return Recipe(folder, " ".join(task.split()), levers, " ".join(data.split()))
