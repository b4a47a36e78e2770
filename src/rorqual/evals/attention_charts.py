"""The charts of the page of `rorqual attention`."""

from __future__ import annotations

import math

from rorqual.evals.attention_tables import distances, planted, recall_by_layer
from rorqual.evals.missed_report import MissedReport
from rorqual.evals.planted import DEPTHS, PlantedMisses
from rorqual.report.chart import Chart, Panel, Series

WIDTH = 4.6
"""Inches. At this width, the text of a chart is readable on a phone."""


def charts(report: MissedReport) -> list[Chart]:
    """Return the report's charts. Charts without values are left out."""
    found = [recall_chart(report), distance_chart(report)] if report.texts else []
    found += [needles_chart(report)] if any(one.kind == "needle" for one in report.planted) else []
    return found + ([copies_chart(report)] if planted(report, "copy", report.shown) else [])


def recall_chart(report: MissedReport) -> Chart:
    """Chart the recall of each layer, with one line per budget."""
    recalls = {budget: recall_by_layer(report, budget) for budget in report.budgets}
    ends = "; ".join(
        f"{budget} positions: {min(values):.0%} to {max(values):.0%}" for budget, values in recalls.items()
    )
    caption = "Recall at a budget of k: the share of the k positions with the largest dense weights that are selected."
    if len(report.budgets) > 1:
        caption += f" Budgets other than {report.trained} are untrained."
    return Chart(
        name="recall",
        width=WIDTH,
        x="layer",
        y="recall",
        percent=True,
        limits=(0, 1.03),
        x_ticks=[(layer, str(layer)) for layer in range(len(recalls[report.shown]))],
        series=[
            Series(
                label=f"{budget}{' (trained)' if budget == report.trained else ' positions'}",
                points=list(enumerate(values)),
            )
            for budget, values in recalls.items()
        ],
        alt=f"Recall of the layers. {ends}.",
        caption=caption,
    )


def distance_chart(report: MissedReport) -> Chart:
    """Chart dense attention by distance, split into selected and missed."""
    parts = distances(report)
    words = "; ".join(f"{part.name}: {part.share:.0%} of attention, {part.inside:.0%} of it selected" for part in parts)
    return Chart(
        name="distance",
        width=WIDTH,
        kind="bars",
        flip=True,
        stacked=True,
        percent=True,
        labels=[part.name for part in parts],
        x="distance in tokens",
        y="share of attention",
        series=(
            Series(label="selected", points=[(place, part.share * part.inside) for place, part in enumerate(parts)]),
            Series(
                label="missed",
                points=[(place, part.share * (1 - part.inside)) for place, part in enumerate(parts)],
                texts=[f"{part.inside:.0%}" for part in parts],
            ),
        ),
        alt=f"Attention by distance. {words}.",
        caption=f"Dense attention by distance to the query, at {report.shown} positions, mean of all layers and texts. "
        "The number beside a bar is the share of the bar's attention that was selected.",
    )


def needles_chart(report: MissedReport) -> Chart:
    """Chart a heat map for each budget: how much of the dense attention to needles lies on selected positions, by depth
    and length."""
    cells = [one for one in report.planted if one.kind == "needle"]
    lengths = sorted({one.length for one in cells})
    lowest = min(cells, key=lambda one: one.kept)
    return Chart(
        name="needles",
        width=WIDTH,
        columns=2,
        height=2.3,
        panels=[_needle_map(report, budget, lengths) for budget in report.budgets if planted(report, "needle", budget)],
        alt=f"Needles by depth and length. Lowest: {_cell(lowest)}.",
        caption="Share of the dense attention to the needle that lies on selected positions, over all layers. Queries are the tokens of "
        "question and answer. Depth: the share of the filler before the needle.",
    )


def _needle_map(report: MissedReport, budget: int, lengths: list[int]) -> Panel:
    kept = {(one.depth, one.length): one.kept for one in planted(report, "needle", budget)}
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


def _cell(one: PlantedMisses) -> str:
    return f"{one.kept:.0%} at depth {one.depth:.0%}, length {one.length}, {one.budget} positions"


def copies_chart(report: MissedReport) -> Chart:
    """Chart by distance: the share of copied tokens that are predicted right, and the share of the attention to the first
    copy that lies on selected positions."""
    cells = planted(report, "copy", report.shown)
    lines = {"right, sparse": "right_sparse", "right, dense": "right_dense", "attention kept": "kept"}
    words = "; ".join(
        f"{one.distance} tokens: {one.right_sparse:.0%} right with sparse, {one.right_dense:.0%} with dense attention"
        for one in reversed(cells)
    )
    return Chart(
        name="copies",
        width=WIDTH,
        x="distance to the first copy in tokens",
        y="share",
        percent=True,
        limits=(-0.02, 1.05),
        series=[
            Series(label=label, points=[(one.distance, getattr(one, name)) for one in cells])
            for label, name in lines.items()
        ],
        alt=f"Copied lines. {words}.",
        caption=f"At {report.shown} positions: the share of a copied line's tokens that are predicted right, and the share of the "
        "attention to the first copy that is kept.",
    )
