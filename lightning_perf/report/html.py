"""The report as one self-contained HTML page, and as a fragment for notebooks."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING

from lightning_perf.report import plots, rows, section_plots

if TYPE_CHECKING:
    from lightning_perf.report.result import Report, Run
    from lightning_perf.report.sections import Section

_LIGHT = ("#6b7280", "#2563eb", "#d97706", "#059669", "#9333ea", "#dc2626", "#0891b2", "#be185d")
_DARK = ("#9ca3af", "#60a5fa", "#fbbf24", "#34d399", "#c084fc", "#f87171", "#22d3ee", "#f472b6")


def _variables(series: tuple[str, ...], **others: str) -> str:
    colours = {f"series-{index}": colour for index, colour in enumerate(series)} | others
    return "".join(f"--{name}:{colour};" for name, colour in colours.items())


_CSS = f"""
.lightning-perf {{ {
    _variables(
        _LIGHT,
        ink="#1f2937",
        dim="#6b7280",
        grid="#e5e7eb",
        paper="#ffffff",
        panel="#f9fafb",
        better="#047857",
        worse="#b91c1c",
        unresolved="#92600a",
    )
} color-scheme: light; }}
@media (prefers-color-scheme: dark) {{
.lightning-perf {{ {
    _variables(
        _DARK,
        ink="#e5e7eb",
        dim="#9ca3af",
        grid="#374151",
        paper="#111827",
        panel="#1f2937",
        better="#34d399",
        worse="#f87171",
        unresolved="#fbbf24",
    )
} color-scheme: dark; }} }}
.lightning-perf {{ background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; padding: 1.5rem; }}
.lightning-perf .body {{ max-width: 75rem; margin: 0 auto; }}
.lightning-perf h1 {{ font-size: 1.6rem; margin: 0 0 .2rem; overflow-wrap: anywhere; }}
.lightning-perf h2 {{ font-size: 1.1rem; margin: 2rem 0 .6rem; }}
.lightning-perf .dim {{ color: var(--dim); font-size: .85rem; }}
.lightning-perf .scroll {{ overflow-x: auto; }}
.lightning-perf table {{ border-collapse: collapse; width: 100%; margin: 1.2rem 0 .6rem; color: inherit; }}
.lightning-perf th, .lightning-perf td {{ padding: .55rem .9rem; border: 0; border-bottom: 1px solid var(--grid);
  text-align: right; vertical-align: top; font-variant-numeric: tabular-nums; background: var(--paper); }}
.lightning-perf thead th {{ border-bottom: 2px solid var(--dim); }}
.lightning-perf th:first-child {{ text-align: left; font-weight: 600; }}
.lightning-perf td div, .lightning-perf th div {{ font-weight: 400; font-size: .85rem; }}
.lightning-perf td strong {{ font-weight: 600; white-space: nowrap; }}
.lightning-perf td .better, .lightning-perf td .worse, .lightning-perf td .unresolved {{ white-space: nowrap; }}
.lightning-perf .better {{ color: var(--better); }}
.lightning-perf .worse {{ color: var(--worse); }}
.lightning-perf .unresolved {{ color: var(--unresolved); }}
.lightning-perf .swatch {{ display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .4em; }}
.lightning-perf .grid {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr));
  gap: 1rem; align-items: start; }}
.lightning-perf figure {{ margin: 0; padding: 1rem; max-width: 42rem; background: var(--panel); border: 1px solid var(--grid);
  border-radius: 8px; }}
.lightning-perf figcaption {{ font-size: .9rem; margin-bottom: .5rem; }}
.lightning-perf svg {{ width: 100%; height: auto; display: block; }}
.lightning-perf li {{ overflow-wrap: anywhere; }}
.lightning-perf details {{ margin-top: 1rem; }}
.lightning-perf summary {{ cursor: pointer; font-weight: 600; }}
.lightning-perf pre {{ white-space: pre-wrap; overflow-wrap: anywhere; font-size: .8rem; background: var(--panel);
  color: inherit; padding: .8rem; border-radius: 6px; max-height: 20rem; overflow-y: auto; }}
"""

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(report: Report) -> str:
    """One HTML document that asks nothing of any network; every name is escaped."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(report.title)}</title><style>html,body{{margin:0;min-height:100%}}"
        "body.lightning-perf{box-sizing:border-box;min-height:100vh}</style></head>"
        f'<body class="lightning-perf">{_style()}{_body(report)}</body></html>\n'
    )


def fragment(report: Report) -> str:
    """The same content as one element, its style confined to itself: what a notebook shows."""
    return f'<div class="lightning-perf">{_style()}{_body(report)}</div>'


def _style() -> str:
    return f"<style>{_CSS}</style>"


def _body(report: Report) -> str:
    return (
        f'<div class="body"><h1>{escape(report.title)}</h1>'
        f'<div class="dim">{escape(report.created)}</div>'
        f"{_table(report)}{_plots(report)}"
        f"{''.join(_section(section, index) for index, section in enumerate(report.sections))}"
        f"{_list('Reading and notes', rows.sentences(report))}{_list('Reproduce', rows.reproduction(report))}"
        f"{_facts(report)}{_raw(report)}</div>"
    )


def _table(report: Report) -> str:
    head = "".join(
        f'<th scope="col"><span class="swatch" style="background:var(--series-{index % plots.SERIES})"></span>'
        f"{escape(header)}</th>"
        for index, header in enumerate(rows.headers(report))
    )
    body = "".join(
        f'<tr><th scope="row">{escape(row.label)}<div class="dim">{escape(row.hint)}</div></th>'
        f"{''.join(_cell(cell) for cell in row.cells)}</tr>"
        for row in rows.rows(report)
    )
    return f'<div class="scroll"><table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(cell: rows.Cell) -> str:
    if cell.comparison is None:
        return f"<td>{escape(cell.value)}</td>"
    mark = " (not resolved)" if cell.verdict == "unresolved" else ""
    return (
        f"<td><strong>{escape(cell.value)}</strong>"
        f'<div class="{cell.verdict or "dim"}">{escape(cell.comparison)}{mark}</div></td>'
    )


def _plots(report: Report) -> str:
    try:
        drawn = plots.plots(report)
    except ImportError as error:
        return f'<p class="dim">No plots: {escape(str(error))}</p>'
    figures = "".join(f"<figure><figcaption>{escape(caption)}</figcaption>{svg}</figure>" for caption, svg in drawn)
    return f'<div class="grid">{figures}</div>'


def _section(section: Section, index: int) -> str:
    head = "".join(f'<th scope="col">{escape(header)}</th>' for header in section.headers)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in row[1:])}</tr>'
        for row in section.rows
    )
    table = (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>' if body else ""
    )
    lines = "".join(f"<li>{escape(line)}</li>" for line in section.sentences)
    sentences = f"<ul>{lines}</ul>" if lines else ""
    return f"<h2>{escape(section.title)}</h2>{sentences}{table}{_figures(section, index)}"


def _figures(section: Section, index: int) -> str:
    try:
        drawn = section_plots.draw(section, index)
    except ImportError as error:
        return f'<p class="dim">No plots: {escape(str(error))}</p>'
    figures = "".join(f"<figure><figcaption>{escape(caption)}</figcaption>{svg}</figure>" for caption, svg in drawn)
    return f'<div class="grid">{figures}</div>' if figures else ""


def _list(title: str, lines: list[str]) -> str:
    if not lines:
        return ""
    return f"<h2>{title}</h2><ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def _facts(report: Report) -> str:
    lines = "".join(f"<div>{name}: {escape(line)}</div>" for name, line in rows.facts(report).items())
    return f'<h2>Measured on</h2><div class="dim">{lines}</div>'


def _raw(report: Report) -> str:
    runs = sorted(report.runs, key=lambda run: run.position)
    content = "\n".join(line for run in runs for line in _raw_lines(run))
    return f"<details><summary>Raw samples (to six digits; the JSON has all)</summary><pre>{escape(content)}</pre></details>"


def _raw_lines(run: Run) -> Iterator[str]:
    yield f"{run.variant}, seed {run.seed}, position {run.position}"
    for key, value in run.quantities.items():
        yield f"  {key}: {'not measured' if value is None else f'{value:.6g}'}"
    for name, samples in run.samples.items():
        yield f"  {name}: {' '.join(f'{sample:.6g}' for sample in samples)}"
