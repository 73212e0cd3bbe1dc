"""The report as a table for the terminal."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from io import StringIO
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from lightning_perf.report import rows

if TYPE_CHECKING:
    from lightning_perf.report.result import Report
    from lightning_perf.report.sections import Section

_SIDE_BY_SIDE = 6  # variants
_STYLES = {"better": "green", "worse": "red", "unresolved": "yellow", None: ""}


def text(report: Report, width: int | None = None) -> str:
    """The table and the sentences below it, without colour; ``width`` in columns defaults to the terminal's."""
    columns = shutil.get_terminal_size((120, 40)).columns if width is None else width
    console = Console(file=StringIO(), width=columns, color_system=None, highlight=False, legacy_windows=False)
    for renderable in renderables(report):
        console.print(renderable)
    assert isinstance(console.file, StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"


def renderables(report: Report) -> Iterator[RenderableType]:
    """The parts in order. Names come from users: they are `Text`, so that brackets in them are no markup."""
    yield _table(report)
    for section in report.sections:
        yield from _section(section)
    for sentence in rows.sentences(report):
        yield Text(f"- {sentence}")
    for line in rows.reproduction(report):
        yield Text(f"Reproduce {line}")
    for name, line in rows.facts(report).items():
        yield Text(f"{name}: {line}", style="dim")


def _table(report: Report) -> Table:
    """A column per variant; with more variants than fit side by side, a row per variant, and once what all have."""
    table = Table(title=Text(report.title, style="bold"), box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1))
    found = rows.rows(report)
    if len(report.variants) > _SIDE_BY_SIDE:
        table.add_column(Text(f"vs {report.baseline}"), no_wrap=True)
        told = [row for row in found if any(cell != row.cells[0] or cell.comparison for cell in row.cells)]
        for row in told:
            table.add_column(_label(row), justify="right")
        for index, name in enumerate(report.variants):
            table.add_row(Text(name), *(_cell(row.cells[index]) for row in told))
        table.caption = Text("\n".join(f"{row.label}: {row.cells[0].value}" for row in found if row not in told))
        table.caption_justify = "left"
        return table
    table.add_column("")
    for header in rows.headers(report):
        table.add_column(Text(header), justify="right")
    for row in found:
        table.add_row(_label(row), *(_cell(cell) for cell in row.cells))
    return table


def _label(row: rows.Row) -> Text:
    label = Text(row.label)
    if row.hint:
        label.append(f"\n{row.hint}", style="dim")
    return label


def _section(section: Section) -> Iterator[RenderableType]:
    if not section.rows:
        yield Text(section.title, style="bold")
    else:
        title = Text(section.title, style="bold")
        table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1))
        for index, header in enumerate(section.headers):
            table.add_column(Text(header), justify="right" if index else "left")
        for row in section.rows:
            table.add_row(*(Text(cell) for cell in row))
        yield table
    for sentence in section.sentences:
        yield Text(f"- {sentence}")


def _cell(cell: rows.Cell) -> Text:
    shown = Text(cell.value)
    if cell.comparison is not None:
        mark = "\n(not resolved)" if cell.verdict == "unresolved" else ""
        shown.append(f"\n{cell.comparison}{mark}", style=_STYLES[cell.verdict])
    return shown
