"""Every example in a docstring of the library and the recipes and every Python block of the docs and the README runs."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for package in ("lightning_perf", "recipes")
    for path in sorted((ROOT / package).rglob("*.py"))
    # The data modules of recipes read files that are not here, or packages that need not be.
    if ">>>" in path.read_text() and (package, path.name) != ("recipes", "data.py")
]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.filterwarnings("ignore")
def test_docstring_examples(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(name)
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(module, extraglobs=dict(vars(module)), optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
@pytest.mark.filterwarnings("ignore")
def test_pages(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of one page run in order, in one namespace; a block marked ``python no-run`` is only compiled."""
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(
            name, raising=False
        )  # of a Trainer of an earlier test; a page that starts a script has its own
    names: dict[str, object] = {"__name__": "__page__"}
    blocks = re.findall(r"^```python( no-run)?\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    assert blocks or page.parent.name not in ("guides", "questions"), "a guide page without a runnable example"
    for flavour, code in blocks:
        compiled = compile(code, str(page), "exec")
        if not flavour:
            exec(compiled, names)


def test_links_between_pages() -> None:
    """A relative link of a page points at a file that exists."""
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
