"""The tables that `rorqual attention` prints as text and shows on its HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean as mean
from typing import NamedTuple

from rorqual.evals.planted_passages import DEPTHS, PlantedKind, PlantedMisses
from rorqual.evals.sparse_attention_misses import LayerSelectionMisses, SelectionMisses
from rorqual.evals.sparse_attention_report import SparseAttentionReport
from rorqual.report.table import Table


class AttentionAtDistance(NamedTuple):
    """A range of distances, the share of dense attention at these distances, and the fraction of this share that lies on selected positions."""

    name: str
    share: float
    inside: float


def misses_at_shown_budget(report: SparseAttentionReport) -> list[SelectionMisses]:
    """Return what sparse attention misses on each text at the budget `report.shown_budget`."""
    return [text.misses_at_budget(report.shown_budget) for text in report.texts]


def recall_by_layer(report: SparseAttentionReport, budget: int) -> list[float]:
    """Return the recall of each layer at a budget of selected positions, averaged over texts."""
    return [
        mean([layer.recall for layer in layers])
        for layers in _misses_by_layer([text.misses_at_budget(budget) for text in report.texts])
    ]


def attention_by_distance(report: SparseAttentionReport) -> list[AttentionAtDistance]:
    """Return the share of dense attention in each range of distances at the budget `report.shown_budget`, averaged over texts
    and layers."""
    layers = [layer for missed in misses_at_shown_budget(report) for layer in missed.layers]
    found = []
    for first, last in sorted({(part.first, part.last) for layer in layers for part in layer.distances}):
        parts = [part for layer in layers for part in layer.distances if part.first == first]
        share, end = sum(part.share for part in parts), min(last, report.length - 1)
        name = f"{first:,}" if first == end else f"{first:,}-{end:,}"
        found.append(
            AttentionAtDistance(name, share / len(layers), sum(part.share * part.inside for part in parts) / share)
        )
    return found


def planted_misses_by_depth(
    report: SparseAttentionReport, kind: PlantedKind, budget: int, length: int = 0
) -> list[PlantedMisses]:
    """Return the results for one kind of planted text at one budget and one passage length (0: all lengths), by depth."""
    return [one for one in report.planted if (one.kind, one.budget) == (kind, budget) and length in (0, one.length)]


def tables(report: SparseAttentionReport) -> dict[str, Table]:
    """Return all tables of `report` by name. Tables without rows are left out."""
    found = {**_text_tables(report), "needles": _needles_table(report), "copies": _copies_table(report)}
    return {name: table for name, table in found.items() if table.rows}


def notes(report: SparseAttentionReport) -> list[str]:
    """Return lines that explain the tables' columns and name the budgets that are untrained and the budgets at which attention
    is dense."""
    found = []
    if report.texts:
        found += [
            "mass: share of dense attention on selected positions (p1: first percentile over queries)",
            f"recall: share of the {report.shown_budget} positions with the largest dense weights that are selected; "
            "by text, the lowest layer's",
            "weighted: share of the dense attention on these positions that is on selected ones; by text, the lowest layer's",
            "output: |sparse - dense| / |dense|. tied: selected positions whose score equals the best that is not selected",
            "KL: KL(dense || sparse) of the next token in nats. changed: queries whose most likely token changes. loss: in nats",
        ]
    if report.planted:
        found.append(
            "kept: share of the dense attention from question and answer to the planted text that is on selected positions"
        )
        found.append("right: share of the answer's tokens that the model ranks first")
        found.append("Lengths that are too short, or at which attention is dense, are left out.")
    if len(report.budgets) > 1 or report.trained not in report.budgets:
        found.append(
            f"Budgets other than {report.trained} are untrained: index_topk was changed for this measurement only."
        )
    found += [f"At a budget of {budget}, attention is dense: no query sees more positions." for budget in report.dense]
    return found


def heading(report: SparseAttentionReport) -> list[str]:
    """Return lines with the model, its trained budget, and the numbers of windows and queries."""
    lines = [f"{report.model}: index_topk={report.trained}, tables at {report.shown_budget} positions per query."]
    if texts := misses_at_shown_budget(report):
        windows, queries, dense = (
            sum(values) for values in zip(*((t.windows, t.queries, t.dense) for t in texts), strict=True)
        )
        lines.append(f"{windows} windows of {report.length} tokens, {queries:,} queries.")
        lines.append(f"{dense:,} further queries see all their positions and are left out.")
    return lines


def report_as_text(report: SparseAttentionReport) -> str:
    """Return all tables and notes as text."""
    return "\n".join([*heading(report), *(table.text() for table in tables(report).values()), "", *notes(report)])


def _misses_by_layer(texts: Sequence[SelectionMisses]) -> list[tuple[LayerSelectionMisses, ...]]:
    """Return, for each layer, what the layer misses on each text."""
    return list(zip(*(missed.layers for missed in texts), strict=True))


def _text_tables(report: SparseAttentionReport) -> dict[str, Table]:
    texts = misses_at_shown_budget(report)
    by_text = [
        [text.name, f"{m.windows}", f"{m.queries:,}", f"{m.mean_selected_mass:.3f}", f"{m.recall:.3f}", f"{m.weighted_recall:.3f}",
         f"{m.kl:.4f}", f"{m.flips:.1%}", f"{m.loss_sparse:.4f}", f"{m.loss_dense:.4f}"]
        for text, m in zip(report.texts, texts, strict=True)
    ]  # fmt: skip
    by_layer = [
        [f"{parts[0].layer}", *(f"{mean([getattr(part, name) for part in parts]):{form}}" for name, form in LAYER.values())]
        for parts in _misses_by_layer(texts)
    ]  # fmt: skip
    recalls = (
        [recall_by_layer(report, budget) for budget in report.budgets] if len(report.budgets) > 1 and texts else []
    )
    by_budget = [
        [f"{layer}", *(f"{value:.3f}" for value in row)] for layer, row in enumerate(zip(*recalls, strict=True))
    ]
    names = [f"{budget}" + (" (trained)" if budget == report.trained else "") for budget in report.budgets]
    far = [[part.name, f"{part.share:.1%}", f"{part.inside:.1%}"] for part in attention_by_distance(report)]
    several = ", mean of all texts" if len(texts) > 1 else ""
    heads = ("text", "windows", "queries", "mass", "recall", "weighted", "KL", "changed", "loss sparse", "loss dense")
    return {
        "texts": Table(title="by text", heads=heads, rows=by_text),
        "layers": Table(title=f"by layer{several}", heads=("layer", *LAYER), rows=by_layer),
        "recall": Table(title=f"recall by layer and budget{several}", heads=("layer", *names), rows=by_budget),
        "distance": Table(
            title=f"by distance, mean of all layers{several and ' and texts'}",
            heads=("distance", "attention", "selected"),
            rows=far,
        ),
    }


LAYER = {
    "mass": ("mass", ".3f"),
    "mass p1": ("mass_p1", ".3f"),
    "recall": ("recall", ".3f"),
    "weighted": ("weighted_recall", ".3f"),
    "output": ("difference", ".3f"),
    "tied": ("tied", ".1%"),
}
"""The columns of the table by layer: heading -> (field of `LayerSelectionMisses`, format)."""


def _needles_table(report: SparseAttentionReport) -> Table:
    rows = []
    for budget in report.budgets:
        for length in sorted({one.length for one in planted_misses_by_depth(report, "needle", budget)}):
            cells = planted_misses_by_depth(report, "needle", budget, length)
            right = (mean([one.right_sparse for one in cells]), mean([one.right_dense for one in cells]))
            rows.append(
                [
                    f"{budget}",
                    f"{length:,}",
                    *(f"{one.selected_share:.1%}" for one in cells),
                    *(f"{r:.1%}" for r in right),
                ]
            )
    depths = [f"depth {depth:.0%}" for depth in DEPTHS]
    heads = ["budget", "length", *depths, "right sparse", "right dense"]
    return Table(title="needles: attention kept by depth, and right answers", heads=heads, rows=rows)


def _copies_table(report: SparseAttentionReport) -> Table:
    rows = [
        [
            f"{budget}",
            f"{one.distance:,}",
            f"{one.selected_share:.1%}",
            f"{one.right_sparse:.1%}",
            f"{one.right_dense:.1%}",
        ]
        for budget in report.budgets
        for one in reversed(planted_misses_by_depth(report, "copy", budget))
    ]
    heads = ("budget", "distance", "kept", "right sparse", "right dense")
    return Table(title="copied lines, by distance in tokens", heads=heads, rows=rows)
