"""Every callback, preset and command has a page, and the index of the docs leads there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from lightning.pytorch.cli import LightningCLI

from lightning_perf.cli.main import _COMMANDS
from lightning_perf.cli.short_names import callback_classes, strategy_names

DOCS = Path(__file__).parents[1] / "docs"
NAMES = [*callback_classes(), *strategy_names(), *_COMMANDS, *LightningCLI.subcommands()]


def index() -> dict[str, Path]:
    """What the index names in code marks -> the first page of its line."""
    found = {}
    for line in (DOCS / "README.md").read_text().splitlines():
        named, _, page = line.strip("| ").partition(" | ")
        target = re.search(r"\]\(([^)]+)\)", page)
        if target:
            found |= {name.removesuffix("()"): DOCS / target[1] for name in re.findall(r"`([^`]+)`", named)}
    return found


@pytest.mark.parametrize("name", NAMES)
def test_has_a_page_that_speaks_of_it(name: str) -> None:
    assert name in index(), f"docs/README.md has no line for {name}"
    assert name in index()[name].read_text()


def test_every_page_is_in_the_index() -> None:
    text = (DOCS / "README.md").read_text()
    pages = [page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md") if page.name != "README.md"]
    assert [page for page in pages if f"({page})" not in text] == []
