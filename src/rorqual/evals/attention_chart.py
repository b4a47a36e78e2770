"""The chart on the page of `rorqual attention`: the share of the attention to needles that lies on selected positions, by depth and length."""

from __future__ import annotations

import math

from rorqual.evals.attention_tables import planted_misses_by_depth
from rorqual.evals.planted_passages import DEPTHS
from rorqual.evals.sparse_attention_report import SparseAttentionReport
from rorqual.report.chart import Chart, Panel, Series

WIDTH = 4.6
"""Width of the chart in inches. At this width, the text of a chart is readable on a phone."""


def needles_chart(report: SparseAttentionReport) -> Chart:
    """Chart a heat map for each budget of selected positions: how much of the dense attention to needles lies on selected
    positions, by depth and length."""
    cells = [one for one in report.planted if one.kind == "needle"]
    lengths = sorted({one.length for one in cells})
    lowest = min(cells, key=lambda one: one.selected_share)
    return Chart(
        name="needles",
        width=WIDTH,
        columns=2,
        height=2.3,
        panels=[
            _needle_map(report, budget, lengths)
            for budget in report.budgets
            if planted_misses_by_depth(report, "needle", budget)
        ],
        alt=f"Needles by depth and length. Lowest: {lowest.selected_share:.0%} at depth {lowest.depth:.0%}, length {lowest.length}, "
        f"{lowest.budget} positions.",
        caption="Share of the dense attention to the needle that lies on selected positions, over all layers. Queries are the tokens of "
        "question and answer. Depth: the share of the filler before the needle.",
    )


def _needle_map(report: SparseAttentionReport, budget: int, lengths: list[int]) -> Panel:
    kept = {(one.depth, one.length): one.selected_share for one in planted_misses_by_depth(report, "needle", budget)}
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
