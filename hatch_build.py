"""Put the recipes into the wheel as ``lightning_perf_recipes``, so that no site-packages gets a top-level ``recipes``.

In a checkout, a link of that name makes the same class paths work; an editable install must not copy the files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class RecipesHook(BuildHookInterface):
    """Hatchling's hook for the wheel target."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the recipes to a standard wheel."""
        if version != "editable":
            build_data["force_include"][str(Path(self.root) / "recipes")] = "lightning_perf_recipes"
