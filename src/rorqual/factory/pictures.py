"""Plots of the dataset card: the lengths of samples, and the number of kept and dropped samples per family."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rorqual.data.distilled import Distilled
from rorqual.evals.pictures import Picture, Theme, panels

BINS = 30


def pictures(rows: Sequence[Distilled]) -> Iterator[Picture]:
    """Yield the plots, each named after its section of the card. Without samples, there are no plots."""
    if rows:
        yield families(rows)
        yield lengths(rows)


def _parts(rows: Sequence[Distilled], theme: Theme) -> list[tuple[str, str, list[Distilled]]]:
    """Return (label, colour, rows) of each non-empty group of samples.

    The three groups are: kept samples, right samples that were dropped, and all other dropped samples.
    """
    kept = [row for row in rows if not row.dropped]
    right = [row for row in rows if row.dropped and row.verdict == "right"]
    other = [row for row in rows if row.dropped and row.verdict != "right"]
    parts = [
        ("kept", theme.after, kept),
        ("right, dropped", theme.off, right),
        ("wrong or ungraded, dropped", theme.before, other),
    ]
    return [part for part in parts if part[2]]


def lengths(rows: Sequence[Distilled]) -> Picture:
    """Return a histogram of the number of tokens per sample."""
    tokens = [row.completion_tokens for row in rows]
    edges = np.histogram_bin_edges(tokens, bins=min(BINS, max(tokens) - min(tokens) + 1))

    def draw(theme: Theme) -> Figure:
        figure, (axis,) = panels(1, 1, 7.4, 2.8)
        parts = _parts(rows, theme)
        axis.hist(
            [[row.completion_tokens for row in part] for _, _, part in parts],
            bins=list(edges), stacked=True, color=[colour for _, colour, _ in parts], label=[name for name, _, _ in parts],
        )  # fmt: skip
        axis.set_xlabel("tokens per sample")
        axis.set_ylabel("samples")
        axis.yaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(axis="x", visible=False)
        figure.legend(loc="outside lower center", ncols=3)
        return figure

    low, middle, high = np.percentile(tokens, [10, 50, 90])
    alt = f"Histogram of sample lengths: median {middle:.0f} tokens, 10 % below {low:.0f}, 10 % above {high:.0f}."
    return Picture("filters", alt, "Length of all samples, including reasoning.", draw)


def families(rows: Sequence[Distilled]) -> Picture:
    """Return a plot with one bar for each family. A bar stacks the groups of `_parts`."""
    names = list(dict.fromkeys(row.family for row in rows))

    def draw(theme: Theme) -> Figure:
        figure, (axis,) = panels(1, 1, 7.4, 1.0 + 0.3 * len(names))
        places = np.arange(len(names), dtype=float)[::-1]
        start = np.zeros(len(names))
        for label, colour, part in _parts(rows, theme):
            counts = np.array([sum(row.family == name for row in part) for name in names], float)
            axis.barh(places, counts, left=start, height=0.62, color=colour, label=label)
            start += counts
        axis.set_yticks(places, names, color=theme.ink, fontsize=9)
        axis.set_xlabel("samples")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(axis="y", visible=False)
        figure.legend(loc="outside lower center", ncols=3)
        return figure

    summary = "; ".join(
        f"{name}: {sum(r.family == name for r in rows)} samples, {sum(r.family == name and not r.dropped for r in rows)} kept"
        for name in names
    )
    return Picture("families", f"Samples by family. {summary}.", "Kept and dropped samples of each family.", draw)
