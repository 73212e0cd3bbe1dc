"""The page: self-contained, escaped, with plots or with the way to get them."""

from __future__ import annotations

import dataclasses
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lightning_perf.report import Quantity, Report

# Two dollars, so that matplotlib would take what is between them for a formula.
EVIL = "<script>alert('x')</script>&\"$\\bad{$"


class Page(HTMLParser):
    """Tags with their attributes, text outside of style, and a check that what is opened is closed."""

    _VOID = ("meta", "br")

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(content)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self._VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += data


def evil(report: Report) -> Report:
    """The same report with every name that a user chooses replaced."""
    runs = [
        dataclasses.replace(
            run,
            variant=f"{EVIL}{run.variant}",
            curves={f"{EVIL}curve": run.curves["loss"]},
            samples={f"{EVIL}sample": (1.0, 1.0, 1.0, 9.0)},
            notes=(f"{EVIL}note",),
            error=f"{EVIL}error",
            missing=dict.fromkeys(run.missing, f"{EVIL}missing"),
        )
        for run in report.runs
    ]
    quantities = [dataclasses.replace(quantity, label=EVIL + quantity.label) for quantity in report.quantities]
    return dataclasses.replace(
        report,
        title=f"{EVIL}title",
        baseline=f"{EVIL}plain",
        runs=runs,
        quantities=[*quantities, Quantity("z", f"{EVIL}z", f"{EVIL}unit")],
        machine={f"{EVIL}m": f"{EVIL}machine"},
        versions={f"{EVIL}v": f"{EVIL}version"},
        configs={f"{EVIL}fast": f"{EVIL}path"},
        notes=[f"{EVIL}note of the report"],
        created=f"{EVIL}created",
    )


@pytest.mark.parametrize("plots", [True, False])
def test_every_name_is_escaped(report: Report, monkeypatch: pytest.MonkeyPatch, plots: bool) -> None:
    pytest.importorskip("matplotlib")
    if not plots:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
    from lightning_perf.report import html

    page = Page(html.page(evil(report)))
    assert "script" not in {tag for tag, _ in page.tags}
    for part in ("title", "plain", "sample", "note", "error", "missing", "machine", "version", "path", "created"):
        assert EVIL + part in page.text
    assert (f"{EVIL}curve" in page.text) is plots


def test_the_page_asks_nothing_of_any_network(report: Report, tmp_path: Path) -> None:
    content = report.to_html(tmp_path / "new" / "report.html").read_text(encoding="utf-8")
    page = Page(content)
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "img", "iframe", "object")
        for name in ("src", "href", "xlink:href", "data"):
            assert (attributes.get(name) or "#").startswith("#")
    assert "@import" not in content
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", content))
    policies = [attributes["content"] for tag, attributes in page.tags if attributes.get("http-equiv")]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_the_page_holds_table_plots_notes_machine_and_samples(report: Report) -> None:
    pytest.importorskip("matplotlib")
    from lightning_perf.report import html

    content = html.page(report)
    page = Page(content)
    for part in ("two variants", "fast vs plain", "2.00x [1.90, 2.10]", "val_acc", "Test CPU", "torch 2.13.0"):
        assert part in page.text
    assert "step_seconds: 0.01 0.011 0.012 0.0105" in page.text
    assert [tag for tag, _ in page.tags].count("svg") == 3
    assert "prefers-color-scheme: dark" in content


def test_ids_and_their_references_are_unique_and_whole(report: Report) -> None:
    pytest.importorskip("matplotlib")
    from lightning_perf.report import html

    content = html.page(report)
    ids = re.findall(r'\bid="([^"]*)"', content)
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]*)', content))
    assert len(ids) == len(set(ids))
    assert used
    assert used <= set(ids)


def test_without_matplotlib_the_page_says_how_to_get_plots(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_perf.report import html

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = Page(html.page(report))
    assert "svg" not in {tag for tag, _ in page.tags}
    assert "pip install 'lightning-perf[report]'" in page.text
    assert "2.00x [1.90, 2.10]" in page.text


def test_a_notebook_shows_one_element_whose_style_stays_inside(report: Report) -> None:
    content = report._repr_html_()
    page = Page(content)
    assert page.tags[0] == ("div", {"class": "lightning-perf"})
    assert not {"html", "body", "head"} & {tag for tag, _ in page.tags}
    style = content[content.index("<style>") + 7 : content.index("</style>")]
    selectors = re.findall(r"([^{}]+)\{", style)
    rules = [part.strip() for selector in selectors for part in selector.split(",") if "@media" not in part]
    assert rules
    assert all(rule.startswith(".lightning-perf") for rule in rules)
