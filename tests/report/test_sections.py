"""Sections of a report: tables and plots below the variants, in the terminal, in HTML, in JSON."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from lightning_perf.report import Plot, Quantity, Report, Run, Section, Series

SECTION = Section(
    "Phases <b>",
    sentences=["half of it <script>alert(1)</script> waits"],
    headers=("phase", "ms"),
    rows=[("forward & back", "3.1"), ("[bold]data[/bold]", "2.0")],
    plots=[
        Plot("bars", [Series("forward", [(0, 3.1)], kind="bar"), Series("data $x$", [(0, 2.0)], kind="bar")], x="ms"),
        Plot("lines", [Series("float32", [(1, 2), (3, 4)]), Series("step", [(2, 1)], kind="points")], logarithmic="xy"),
        Plot(
            "timeline",
            [
                Series("forward", [(0, 1), (2, 3)], kind="spans", row=0),
                Series("forward", [(0, 1)], kind="spans", row=1),
            ],
        ),
    ],
)


@pytest.fixture
def report() -> Report:
    speed = Quantity("speed", "speed", "samples/s", better="higher")
    return Report("title", "plain", [Run("plain", 0, quantities={"speed": 1.0})], [speed], sections=[SECTION])


def test_terminal_shows_tables_and_sentences_as_they_are(report: Report) -> None:
    text = report.table(width=100)
    for part in ("Phases <b>", "forward & back", "[bold]data[/bold]", "3.1", "- half of it <script>"):
        assert part in text


def test_page_escapes_and_draws_every_plot(report: Report, tmp_path: Path) -> None:
    page = report.to_html(tmp_path / "r.html").read_text()
    assert "<script>" not in page
    assert "Phases &lt;b&gt;" in page
    assert "forward &amp; back" in page
    assert page.count("<figcaption>") == 3
    assert "data $x$" in page, "a dollar is a dollar, not mathematics"


def test_a_name_keeps_its_colour_and_stands_in_the_legend_once(report: Report, tmp_path: Path) -> None:
    """Two rows of spans of one phase, below each other."""
    timeline = dataclasses.replace(report, sections=[dataclasses.replace(SECTION, plots=SECTION.plots[2:])])
    page = timeline.to_html(tmp_path / "r.html").read_text()
    figure = page.split("<figcaption>timeline")[1]
    assert figure.count(">forward<") == 1
    assert "var(--series-0)" in figure
    assert "var(--series-1)" not in figure.split("</figure>")[0]


def test_json_round_trip(report: Report) -> None:
    assert Report.from_json(report.to_json()) == report


def test_reports_of_before_have_no_sections(report: Report) -> None:
    """A file without the field is read as before."""
    text = dataclasses.replace(report, sections=()).to_json()
    old = "\n".join(line for line in text.splitlines() if '"sections"' not in line)
    assert Report.from_json(old).sections == ()


def test_every_row_has_a_cell_per_header() -> None:
    with pytest.raises(ValueError, match=r"2 headers .* and a row of 1 cells"):
        Section("t", headers=("a", "b"), rows=[("1",)])


def test_a_section_without_a_plot_needs_no_matplotlib(
    report: Report, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with_plots = report.to_html(tmp_path / "a.html").read_text()
    assert "matplotlib is not installed" in with_plots
    plain = dataclasses.replace(report, sections=[dataclasses.replace(SECTION, plots=())])
    assert plain.to_html(tmp_path / "b.html").read_text().count("No plots") == 1, "the report's own plots only"
