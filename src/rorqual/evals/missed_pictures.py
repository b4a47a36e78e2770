"""The pictures of the page of `rorqual attention`."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from rorqual.evals.missed_report import MissedReport
from rorqual.evals.missed_table import distances, planted, recall_by_layer
from rorqual.evals.pictures import Picture, Theme, panels
from rorqual.evals.planted import DEPTHS, PlantedMisses

MARKERS = ("o", "s", "^", "D", "v", "P")
PERCENT = PercentFormatter(1.0, decimals=0)
WIDTH = 4.6
"""Inches. At this width, the text of a picture is readable on a phone."""


def pictures(report: MissedReport) -> dict[str, Picture]:
    """Return the report's pictures by name. Pictures without values are left out."""
    found = [recalls(report), by_distance(report)] if report.texts else []
    found += [needle_maps(report)] if any(planted(report, "needle", budget) for budget in report.budgets) else []
    found += [copied(report)] if planted(report, "copy", report.shown) else []
    return {picture.name: picture for picture in found}


def recalls(report: MissedReport) -> Picture:
    """Draw the recall of each layer, with one line per budget."""

    def draw(theme: Theme) -> Figure:
        figure, (axis,) = panels(1, 1, WIDTH, 2.8)
        for place, budget in enumerate(report.budgets):
            trained = budget == report.trained
            values = recall_by_layer(report, budget)
            axis.plot(range(len(values)), values, marker=MARKERS[place % 6], markersize=4.5, linewidth=2.2 if trained else 1.2,
                      color=theme.after if trained else theme.heat(0.25 + 0.7 * place / len(report.budgets)),
                      label=f"{budget}{' (trained)' if trained else ''}")  # fmt: skip
        axis.set(xlabel="layer", ylabel="recall", ylim=(0, 1.03), xlim=(-0.3, len(values) - 0.7))
        axis.yaxis.set_major_formatter(PERCENT)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(loc="outside upper right", ncols=min(4, len(report.budgets)), title="budget")
        return figure

    ends = "; ".join(
        f"{budget} positions: {min(values):.0%} to {max(values):.0%}"
        for budget in report.budgets
        for values in [recall_by_layer(report, budget)]
    )
    caption = "Recall at a budget of k: the share of the k positions with the largest dense weights that are selected."
    if len(report.budgets) > 1:
        caption += f" Budgets other than {report.trained} are untrained."
    return Picture("recall", f"Recall of the layers. {ends}.", caption, draw)


def by_distance(report: MissedReport) -> Picture:
    """Draw dense attention by distance, split into selected and missed."""
    parts = distances(report)

    def draw(theme: Theme) -> Figure:
        figure, (axis,) = panels(1, 1, WIDTH, 2.6)
        places, inside = range(len(parts)), [part.share * part.inside for part in parts]
        missed = [part.share - kept for part, kept in zip(parts, inside, strict=True)]
        axis.bar(places, inside, 0.7, color=theme.after, label="selected")
        axis.bar(
            places,
            missed,
            0.7,
            bottom=inside,
            color=theme.off,
            hatch="///",
            edgecolor=theme.ground,
            linewidth=0,
            label="missed",
        )
        for place, part in enumerate(parts):
            axis.text(place, part.share, f" {part.inside:.0%}", ha="center", va="bottom", fontsize=8, color=theme.ink)
        axis.set(xlabel="distance in tokens", ylabel="share of attention")
        axis.margins(y=0.12)
        axis.set_xticks(places, [part.name for part in parts])
        axis.tick_params(axis="x", labelrotation=35 if len(parts) > 5 else 0)
        axis.yaxis.set_major_formatter(PERCENT)
        figure.legend(loc="outside upper right", ncols=3)
        return figure

    values = "; ".join(
        f"{part.name}: {part.share:.0%} of attention, {part.inside:.0%} of it selected" for part in parts
    )
    caption = (
        f"Dense attention by distance to the query, at {report.shown} positions, mean of all layers and texts. "
        "The number above a bar is the share of the bar's attention that was selected."
    )
    return Picture("distance", f"Attention by distance. {values}.", caption, draw)


def needle_maps(report: MissedReport) -> Picture:
    """Draw a heat map for each budget: how much of the dense attention to needles lies on selected positions, by depth
    and length."""
    budgets = [budget for budget in report.budgets if planted(report, "needle", budget)]
    lengths = sorted({one.length for one in report.planted if one.kind == "needle"})

    def draw(theme: Theme) -> Figure:
        figure, axes = panels(len(budgets), 2, WIDTH / 2, 2.3)
        for axis, budget in zip(axes, budgets, strict=True):
            kept = np.full((len(DEPTHS), len(lengths)), np.nan)
            for one in planted(report, "needle", budget):
                kept[DEPTHS.index(one.depth), lengths.index(one.length)] = one.kept
            axis.imshow(kept, cmap=theme.heat, vmin=0, vmax=1.6, aspect="auto")
            for (row, column), value in np.ndenumerate(kept):
                colour = theme.faint if np.isnan(value) else theme.ground if value > 0.55 else theme.ink
                axis.text(
                    column,
                    row,
                    "dense" if np.isnan(value) else f"{value:.0%}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color=colour,
                )
            axis.set_title(f"{budget} positions" + (" (trained)" if budget == report.trained else ""))
            axis.set(xlabel="length in tokens", ylabel="depth")
            axis.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
            axis.set_yticks(range(len(DEPTHS)), [f"{depth:.0%}" for depth in DEPTHS])
            axis.grid(visible=False)
        return figure

    cells = [one for one in report.planted if one.kind == "needle"]
    lowest = min(cells, key=lambda one: one.kept)
    caption = (
        "Share of the dense attention to the needle that lies on selected positions, over all layers. Queries are the tokens of question and "
        "answer. Depth: the share of the filler before the needle."
    )
    return Picture("needles", f"Needles by depth and length. Lowest: {_cell(lowest)}.", caption, draw)


def _cell(one: PlantedMisses) -> str:
    return f"{one.kept:.0%} at depth {one.depth:.0%}, length {one.length}, {one.budget} positions"


def copied(report: MissedReport) -> Picture:
    """Draw by distance: the share of copied tokens that are predicted right, and the share of the attention to the first
    copy that lies on selected positions."""
    cells = planted(report, "copy", report.shown)

    def draw(theme: Theme) -> Figure:
        figure, (axis,) = panels(1, 1, WIDTH, 2.6)
        lines = (
            ("attention kept", "kept", theme.off, "^", "--"),
            ("right, sparse", "right_sparse", theme.after, "o", "-"),
            ("right, dense", "right_dense", theme.before, "s", "-"),
        )
        for label, name, colour, marker, style in lines:
            values = [getattr(one, name) for one in cells]
            axis.plot(
                [one.distance for one in cells],
                values,
                color=colour,
                marker=marker,
                markersize=4.5,
                linestyle=style,
                label=label,
            )
        axis.set(xlabel="distance to the first copy in tokens", ylabel="share", ylim=(-0.02, 1.05))
        axis.yaxis.set_major_formatter(PERCENT)
        figure.legend(loc="outside upper right", ncols=3)
        return figure

    values = "; ".join(
        f"{one.distance} tokens: {one.right_sparse:.0%} right with sparse, {one.right_dense:.0%} with dense attention"
        for one in reversed(cells)
    )
    caption = (
        f"At {report.shown} positions: the share of a copied line's tokens that are predicted right, and the share of the "
        "attention to the first copy that is kept."
    )
    return Picture("copies", f"Copied lines. {values}.", caption, draw)
