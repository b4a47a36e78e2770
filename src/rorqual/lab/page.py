"""The page of a finding: one HTML file that needs no network, with tables and figures as in a paper."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from rorqual.core.records import write_atomic
from rorqual.evals import page as html
from rorqual.evals.pictures import DARK, LIGHT, Picture, Theme, panels, png
from rorqual.evals.stats import t_interval
from rorqual.evals.verdict import SEEDS
from rorqual.lab.finding import Chart, Contrast, Finding, Series, Table

MARKS = {"holds": "v-yes", "does not hold": "v-no", "open": "v-open"}
MARKERS = ("o", "s", "^", "D", "v", "P")


def write_page(finding: Finding, out: Path) -> Path:
    """Write `out/NAME.html` and return its path."""
    target = out / f"{finding.experiment}.html"
    write_atomic(target, page_text(finding).encode())
    return target


def page_text(finding: Finding) -> str:
    """Return a finding's page: verdict, contrasts, charts, tables, costs, and the command that repeats the experiment."""
    parts = [
        f"<h1>{escape(finding.title)}</h1>",
        f'<p class="lede">Claim: {escape(finding.claim)} <span class="meta">({escape(finding.source)})</span></p>',
        f'<p>Verdict: <span class="v {MARKS[finding.verdict]}">{escape(finding.verdict)}</span></p>',
        *(html.para(words) for words in finding.words),
        *_contrasts(finding),
        *(html.figure(picture, png(picture, LIGHT), png(picture, DARK)) for picture in map(picture_of, finding.charts)),
        *(part for table in finding.tables for part in _table(table)),
        html.section("cost", "Cost", *_costs(finding)),
        html.section(
            "repeat", "Repeat this experiment", html.preformatted(finding.command), html.para(_made(finding), "meta")
        ),
    ]
    return html.page(f"{finding.experiment}: {finding.verdict}", "\n".join(parts))


def number(value: float, unit: str, *, signed: bool = False) -> str:
    """Format a value in its unit. A share (unit `points`) is formatted in percent."""
    scaled, digits = (100 * value, 1) if unit == "points" else (value, 4 if unit in ("nats", "bits") else 3)
    return f"{scaled:{'+' if signed else ''}.{digits}f}"


def _contrasts(finding: Finding) -> list[str]:
    if not finding.contrasts:
        return []
    questions: dict[str, list[Contrast]] = {}
    for contrast in finding.contrasts:
        questions.setdefault(contrast.question, []).append(contrast)
    level = f"{finding.contrasts[0].confidence:.0%}"
    heads = ["", "first", "second", "difference", f"{level} interval", "", f"{level}, t over seeds", "each seed"]
    groups = [(question, [_contrast_row(contrast) for contrast in rows]) for question, rows in questions.items()]
    note = (
        "Bootstrap intervals resample seeds first, then the items of each seed. With five seeds, their coverage is below "
        "nominal (docs/results/coverage.json). Student's t has nominal coverage if the seeds' differences are normally "
        "distributed, and is wide. "
        f"A row is higher or lower if both intervals agree and there are at least {SEEDS} seeds. Points are shares in percent. There is no "
        "correction for the number of rows."
    )
    return [html.section("contrasts", "Contrasts", html.table("contrasts", heads, groups), html.para(note, "note"))]


def _contrast_row(contrast: Contrast) -> list[str]:
    seeds = ", ".join(f"{number(a, contrast.unit)} → {number(b, contrast.unit)}" for a, b in contrast.by_seed)
    sign = {"holds": "higher", "does not hold": "lower", "open": "open"}[contrast.sign]
    return [
        f"{contrast.of} ({contrast.unit})",
        number(contrast.a, contrast.unit),
        number(contrast.b, contrast.unit),
        number(contrast.difference, contrast.unit, signed=True),
        f"[{number(contrast.low, contrast.unit, signed=True)}, {number(contrast.high, contrast.unit, signed=True)}]",
        html.Html(f'<span class="v {MARKS[contrast.sign]}">{sign}</span>'),
        _t_interval(contrast),
        html.Html(
            f'<span class="meta" style="display:inline-block;min-width:11rem;white-space:normal">{escape(seeds)}</span>'
        ),
    ]


def _t_interval(contrast: Contrast) -> str:
    if len(contrast.by_seed) < 2:
        return "one seed"
    interval = t_interval(contrast.differences, contrast.confidence)
    return f"[{number(interval.low, contrast.unit, signed=True)}, {number(interval.high, contrast.unit, signed=True)}]"


def _table(table: Table) -> list[str]:
    parts = [f"<h3>{escape(table.title)}</h3>", html.table(table.title, table.heads, [("", table.rows)])]
    return [*parts, html.para(table.note, "note")] if table.note else parts


def _costs(finding: Finding) -> list[str]:
    heads = ["job", "core-seconds, mean", *(f"seed {seed}" for seed in finding.seeds)]
    rows = [
        [name, f"{sum(values) / len(values):.1f}", *(f"{value:.1f}" for value in values)]
        for name, values in finding.costs.items()
    ]
    total = [sum(values[i] for values in finding.costs.values()) for i in range(len(finding.seeds))]
    rows.append(["all", f"{sum(total) / max(len(total), 1):.1f}", *(f"{value:.1f}" for value in total)])
    return [html.table("costs", heads, [("", rows)])]


def _made(finding: Finding) -> str:
    share = "" if finding.share == 1 else f"; at {finding.share:.2%} of the full work"
    return ", ".join(f"{key} {value}" for key, value in finding.made.items()) + share


def picture_of(chart: Chart) -> Picture:
    """Return a chart as a picture."""

    def draw(theme: Theme) -> Figure:
        wide = max(6.6, 0.9 * len(chart.labels) * max(1, len(chart.series) * 0.45))
        figure, (axis,) = panels(1, 1, min(wide, 11), 3.2)
        draw_bars(axis, chart, theme) if chart.kind == "bars" else draw_lines(axis, chart, theme)
        axis.set_title(chart.title)
        axis.set_xlabel(chart.x)
        axis.set_ylabel(chart.y)
        if chart.percent:
            axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        if len(chart.series) > 1:
            figure.legend(loc="outside upper right", ncols=min(len(chart.series), 4))
        return figure

    ends = "; ".join(f"{s.label}: {s.points[0][1]:.3g} to {s.points[-1][1]:.3g}" for s in chart.series if s.points)
    return Picture(chart.name, f"{chart.title}. {ends}.", chart.caption, draw)


def colours(theme: Theme) -> Sequence[str]:
    """Return the colours of the series, in order. Series differ by colour and by marker."""
    return (theme.after, theme.off, theme.on, theme.before, theme.ink, theme.faint)


def draw_lines(axis: Axes, chart: Chart, theme: Theme) -> None:
    """Draw the means with their interval bands. Behind the means, draw a faint line for each seed."""
    for place, series in enumerate(chart.series):
        colour = colours(theme)[place % 6]
        for line in series.by_seed:
            axis.plot(*zip(*line), color=colour, alpha=0.25, linewidth=0.8)
        xs, ys = zip(*series.points)
        axis.plot(xs, ys, color=colour, linewidth=1.8, label=series.label, marker=MARKERS[place % 6], markersize=3.5,
                  markevery=max(1, len(xs) // 8))  # fmt: skip
        if series.low:
            axis.fill_between(xs, series.low, series.high, color=colour, alpha=0.15, linewidth=0)


def draw_bars(axis: Axes, chart: Chart, theme: Theme) -> None:
    """Draw groups of bars with intervals."""
    width = 0.8 / max(len(chart.series), 1)
    for place, series in enumerate(chart.series):
        at = [x + (place - (len(chart.series) - 1) / 2) * width for x, _ in series.points]
        ys = [y for _, y in series.points]
        axis.bar(at, ys, width * 0.92, color=colours(theme)[place % 6], label=series.label)
        if series.low:
            errors = [[y - low for y, low in zip(ys, series.low)], [high - y for y, high in zip(ys, series.high)]]
            axis.errorbar(at, ys, yerr=errors, fmt="none", ecolor=theme.ink, elinewidth=0.9, capsize=2)
        _seed_dots(axis, series, at, theme)
    axis.set_xticks(range(len(chart.labels)), chart.labels)


def _seed_dots(axis: Axes, series: Series, at: Sequence[float], theme: Theme) -> None:
    for line in series.by_seed:
        axis.plot(at, [y for _, y in line], linestyle="none", marker=".", markersize=3, color=theme.ink, alpha=0.55)
