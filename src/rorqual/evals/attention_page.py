"""The tables that `rorqual attention` prints, and its HTML page: the tables and a chart of the attention to needles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean as mean

from rorqual.evals.planted_passages import DEPTHS
from rorqual.evals.sparse_attention_report import Measurement, SparseAttentionReport
from rorqual.evals.stats import Difference
from rorqual.report.chart import Chart, Panel, Series, draw
from rorqual.report.page import render_page
from rorqual.report.table import Table

WIDTH = 4.6
"""Width of the chart in inches. At this width, the text of a chart is readable on a phone."""


def report_as_text(report: SparseAttentionReport) -> str:
    """Return all tables and notes as text."""
    return "\n".join([heading(report), *(table.text() for table in tables(report).values()), "", *notes(report)])


def attention_page(report: SparseAttentionReport, exceeded: Sequence[str]) -> str:
    """Return the HTML page of `report`. `exceeded` has a sentence for each limit that is not kept."""
    return render_page(
        "attention",
        report=report,
        heading=heading(report),
        exceeded=exceeded,
        needles=draw(needles_chart(report)) if any(one.name == "needle" for one in report.measurements) else None,
        tables=tables(report),
        notes=notes(report),
    )


def heading(report: SparseAttentionReport) -> str:
    """Return a line with the model, its trained budget, and the number of predictions that the first table compares."""
    scored = sum(damage.scored for damage in report.summaries(report.shown_budget).values())
    return (
        f"{report.model}: index_topk={report.trained}, tables at {report.shown_budget} positions per query, "
        f"{scored:,} predictions compared."
    )


def tables(report: SparseAttentionReport) -> dict[str, Table]:
    """Return all tables of `report` by name. Tables without rows are left out."""
    found = (_damage_table(report), _budgets_table(report), _layers_table(report), _planted_table(report))
    return {name: table for name, table in zip(("damage", "budgets", "layers", "planted"), found) if table.rows}


def notes(report: SparseAttentionReport) -> list[str]:
    """Return lines that explain the tables' columns and name the budgets that are untrained and the budgets at which attention
    is dense."""
    found = [
        "KL: KL(dense || sparse) of the next token in nats. changed: share of tokens whose most likely token changes. right: share of "
        "tokens that are ranked first. lost: right with dense minus right with sparse attention. Brackets: 95 % intervals over "
        "passages. Of a planted text, only the tokens of the answer count.",
        f"inside: share of dense attention on selected positions. recall: share of the {report.shown_budget} positions with the largest "
        "dense weights that are selected. weighted: share of the dense attention on these positions that is on selected ones. output: "
        "|sparse - dense| / |dense|. These columns explain damage; a model may not need what is missed.",
        "Queries that see no more positions than are selected are left out.",
    ]
    if len(report.budgets) > 1 or report.trained not in report.budgets:
        found.append(
            f"Budgets other than {report.trained} are untrained: index_topk was changed for this measurement only."
        )
    return found + [
        f"At a budget of {budget}, attention is dense: no query sees more positions." for budget in report.dense
    ]


def _damage_table(report: SparseAttentionReport) -> Table:
    rows = [
        [name, f"{d.kl.pairs}", f"{d.scored:,}", _with_interval(d.kl, ".3f"), _with_interval(d.changed, ".1%"), f"{d.right_before:.1%}",
         _with_interval(d.lost, ".1%")]
        for name, d in report.summaries(report.shown_budget).items()
    ]  # fmt: skip
    heads = ("text", "passages", "tokens", "KL", "changed", "right dense", "lost")
    return Table(title="damage, by text", heads=heads, rows=rows)


def _with_interval(value: Difference, form: str) -> str:
    return f"{value.mean:{form}} [{value.interval.low:{form}}, {value.interval.high:{form}}]"


def _budgets_table(report: SparseAttentionReport) -> Table:
    by_budget = [report.summaries(budget) for budget in report.budgets]
    rows = [
        [name, *(f"{damage[name].changed.mean:.1%}" if name in damage else "dense" for damage in by_budget)]
        for name in (by_budget[0] if len(by_budget) > 1 else ())
    ]
    return Table(title="changed tokens, by budget", heads=("text", *map(str, report.budgets)), rows=rows)


def _layers_table(report: SparseAttentionReport) -> Table:
    texts = [one.layers for one in report.measurements if one.depth is None and one.budget == report.shown_budget]
    columns = {"inside": "inside", "recall": "recall", "weighted": "weighted_recall", "output": "difference"}
    rows = [
        [f"{layer}", *(f"{mean([getattr(part, field) for part in parts]):.3f}" for field in columns.values())]
        for layer, parts in enumerate(zip(*texts, strict=True))
    ]
    return Table(title="by layer, mean of all texts", heads=("layer", *columns), rows=rows)


def _planted_table(report: SparseAttentionReport) -> Table:
    planted = [one for one in report.measurements if one.depth is not None]
    rows = []
    for name, budget, length in dict.fromkeys((one.name, one.budget, one.length) for one in planted):
        kept = [one.selected_share for one in planted if (one.name, one.budget, one.length) == (name, budget, length)]
        rows.append([name, f"{budget}", f"{length:,}", *(f"{share:.1%}" for share in kept)])
    heads = ("planted", "budget", "length", *(f"depth {depth:.0%}" for depth in DEPTHS))
    return Table(title="attention to planted texts on selected positions, by depth", heads=heads, rows=rows)


def needles_chart(report: SparseAttentionReport) -> Chart:
    """Chart a heat map for each budget of selected positions: how much of the dense attention to needles lies on selected
    positions, by depth and length."""
    cells = [one for one in report.measurements if one.name == "needle"]
    lowest = min(cells, key=lambda one: one.selected_share)
    return Chart(
        name="needles",
        width=WIDTH,
        columns=2,
        height=2.3,
        panels=[_needle_map(report, budget, cells) for budget in sorted({one.budget for one in cells})],
        alt=f"Needles by depth and length. Lowest: {lowest.selected_share:.0%} at depth {lowest.depth:.0%}, length {lowest.length}, "
        f"{lowest.budget} positions.",
        caption="Share of the dense attention to the needle that lies on selected positions, over all layers. Queries are the tokens of "
        "question and answer. Depth: the share of the filler before the needle.",
    )


def _needle_map(report: SparseAttentionReport, budget: int, cells: Sequence[Measurement]) -> Panel:
    lengths = sorted({one.length for one in cells})
    kept = {(one.depth, one.length): one.selected_share for one in cells if one.budget == budget}
    rows = {depth: [kept.get((depth, length), math.nan) for length in lengths] for depth in DEPTHS}
    return Panel(
        kind="map",
        title=f"{budget} positions" + (" (trained)" if budget == report.trained else ""),
        x="length in tokens",
        y="depth",
        labels=[f"{length:,}" for length in lengths],
        limits=(0, 1.6),
        series=[
            Series(
                label=f"{depth:.0%}",
                points=list(enumerate(row)),
                texts=["dense" if math.isnan(value) else f"{value:.0%}" for value in row],
            )
            for depth, row in rows.items()
        ],
    )
