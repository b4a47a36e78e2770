"""The page of a finding: one HTML file that needs no network, with tables and figures as in a paper."""

from __future__ import annotations

from pathlib import Path

from rorqual.evals.stats import t_interval
from rorqual.evals.verdict import SEEDS
from rorqual.lab.finding import Contrast, Finding, Unit, number
from rorqual.report.chart import draw
from rorqual.report.page import page, write_page
from rorqual.report.table import Table

NOTE = (
    "Bootstrap intervals resample seeds first, then the items of each seed. With five seeds, their coverage is below "
    "nominal (docs/results/coverage.json). Student's t has nominal coverage if the seeds' differences are normally "
    "distributed, and is wide. "
    f"A row is higher or lower if both intervals agree and there are at least {SEEDS} seeds. Points are shares in percent. There is no "
    "correction for the number of rows."
)
MARKS = {"holds": "yes", "does not hold": "no", "open": "open"}


def write_finding_page(finding: Finding, out: Path) -> Path:
    """Write `out/NAME.html` and return its path."""
    return write_page(out / f"{finding.experiment}.html", "finding", **_data(finding))


def page_text(finding: Finding) -> str:
    """Return a finding's page: verdict, contrasts, charts, tables, costs, and the command that repeats the experiment."""
    return page("finding", **_data(finding))


def _data(finding: Finding) -> dict[str, object]:
    share = "" if finding.share == 1 else f"; at {finding.share:.2%} of the full work"
    return {
        "finding": finding,
        "mark": MARKS[finding.verdict],
        "contrasts": _contrasts(finding) if finding.contrasts else None,
        "pictures": [draw(chart) for chart in finding.charts],
        "costs": _costs(finding),
        "made": ", ".join(f"{key} {value}" for key, value in finding.made.items()) + share,
    }


def _contrasts(finding: Finding) -> Table:
    level = f"{finding.contrasts[0].confidence:.0%}"
    heads = ("", "first", "second", "difference", f"{level} interval", "", f"{level}, t over seeds", "each seed")
    questions = dict.fromkeys(contrast.question for contrast in finding.contrasts)
    rows = [
        row
        for question in questions
        for row in ((question,), *(_row(contrast) for contrast in finding.contrasts if contrast.question == question))
    ]
    return Table(title="contrasts", heads=heads, rows=tuple(rows), note=NOTE)


def _row(contrast: Contrast) -> tuple[str, ...]:
    unit = contrast.unit
    return (
        f"{contrast.of} ({unit})",
        number(contrast.a, unit),
        number(contrast.b, unit),
        number(contrast.difference, unit, signed=True),
        _interval(contrast.low, contrast.high, unit),
        {"holds": "● higher", "does not hold": "✕ lower", "open": "○ open"}[contrast.sign],
        "one seed" if len(contrast.by_seed) < 2 else _interval(*_student(contrast), unit),
        ", ".join(f"{number(a, unit)} → {number(b, unit)}" for a, b in contrast.by_seed),
    )


def _student(contrast: Contrast) -> tuple[float, float]:
    interval = t_interval(contrast.differences, contrast.confidence)
    return interval.low, interval.high


def _interval(low: float, high: float, unit: Unit) -> str:
    return f"[{number(low, unit, signed=True)}, {number(high, unit, signed=True)}]"


def _costs(finding: Finding) -> Table:
    total = tuple(sum(values) for values in zip(*finding.costs.values(), strict=True))
    rows = [
        (name, sum(values) / len(values), *values)
        for name, values in (*finding.costs.items(), ("all", total))
        if values
    ]
    return Table(
        title="costs",
        heads=("job", "core-seconds, mean", *(f"seed {seed}" for seed in finding.seeds)),
        rows=tuple((name, *(f"{value:.1f}" for value in values)) for name, *values in rows),
    )
