"""Every recipe cut down to a second: one file per recipe, whose ``arguments`` point it at tiny data and a tiny module."""

from __future__ import annotations

import importlib
from pathlib import Path

ROOT = Path(__file__).parents[3]
RECIPES = sorted(folder.parent.name for folder in (ROOT / "recipes").glob("*/baseline.yaml"))
CONFIGS = sorted((ROOT / "recipes").glob("*/*.yaml"))


def arguments(config: Path, folder: Path) -> list[str]:
    """Arguments of ``fit`` that make a run of ``config`` small; what it reads is written into ``folder``."""
    small = importlib.import_module(f"tests.recipes.small.{config.parent.name}")
    return small.arguments(folder, cuts=config.stem == "channels")
