"""How every command of ours that makes a report ends."""

from __future__ import annotations

from lightning_perf.report import Report


def show(report: Report, *, json: str | None, html: str | None) -> None:
    """Print the tables, and write the files that were asked for."""
    print(report.table())
    if json:
        report.to_json(json)
        print(f"raw samples: {json}")
    if html:
        print(f"page: {report.to_html(html)}")
