"""The HTML page of a finding: the verdict, contrasts, charts and tables, and the command that repeats the experiment."""

from __future__ import annotations

from pathlib import Path

from rorqual.core.records import write_atomic
from rorqual.evals.verdict import INTERVALS_NOTE, SIGNS
from rorqual.lab.finding import Contrast, Finding, format_value
from rorqual.report.chart import draw
from rorqual.report.page import render_page
from rorqual.report.table import Table


def write_page(finding: Finding, out: Path) -> Path:
    """Write the page of a finding to the folder `out` and return the page's path. The file is named after the experiment."""
    target = out / f"{finding.experiment}.html"
    write_atomic(target, page_text(finding).encode())
    return target


def page_text(finding: Finding) -> str:
    """Return the HTML page of a finding."""
    seeds = " ".join(map(str, finding.seeds))
    share = "" if finding.share == 1 else f"; at {finding.share:.2%} of the full work"
    return render_page(
        "finding",
        finding=finding,
        contrasts=contrasts_table(finding),
        pictures=[draw(chart) for chart in finding.charts],
        made=", ".join([f"seeds {seeds}", *(f"{key} {value}" for key, value in finding.made.items())]) + share,
    )


def contrasts_table(finding: Finding) -> Table:
    """Return a table of all contrasts, grouped by question."""
    rows: list[tuple[str, ...]] = []
    for question in dict.fromkeys(contrast.question for contrast in finding.contrasts):
        rows += [(question,), *(_contrast_row(one) for one in finding.contrasts if one.question == question)]
    level = f"{finding.contrasts[0].confidence:.0%}" if finding.contrasts else ""
    heads = ("", "first", "second", "difference", f"{level} interval", "", f"{level}, t over seeds", "each seed")
    return Table(
        title="contrasts", heads=heads, rows=tuple(rows), note=f"{INTERVALS_NOTE} Points are shares in percent."
    )


def _contrast_row(contrast: Contrast) -> tuple[str, ...]:
    unit = contrast.unit
    return (
        f"{contrast.of} ({unit})",
        format_value(contrast.a, unit),
        format_value(contrast.b, unit),
        format_value(contrast.difference, unit, signed=True),
        contrast.interval_text(contrast.bootstrap),
        SIGNS[contrast.judge()],
        contrast.student_text(),
        ", ".join(f"{format_value(a, unit)} → {format_value(b, unit)}" for a, b in contrast.by_seed),
    )
