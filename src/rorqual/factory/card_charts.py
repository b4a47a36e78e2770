"""Charts of the dataset card: the lengths of samples, and the number of kept and dropped samples per family."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from rorqual.data.distilled import TeacherSample
from rorqual.report.chart import Chart, Colour, Series

BINS = 30
GROUPS: dict[str, tuple[Colour, Callable[[TeacherSample], bool]]] = {
    "kept": ("after", lambda row: not row.dropped),
    "right, dropped": ("off", lambda row: bool(row.dropped) and row.verdict == "right"),
    "wrong or ungraded, dropped": ("before", lambda row: bool(row.dropped) and row.verdict != "right"),
}
"""The groups of samples that each bar stacks: name -> (colour, function that tells whether a sample is in the group)."""


def charts(rows: Sequence[TeacherSample]) -> list[Chart]:
    """Return the charts of a dataset card, each named after its section of the card. Return no charts if `rows` is empty."""
    return [families_chart(rows), lengths_chart(rows)] if rows else []


def _stacked_series(
    rows: Sequence[TeacherSample], count: Callable[[list[TeacherSample]], Sequence[tuple[float, float]]]
) -> list[Series]:
    """Return one series per group that has samples. `count` returns the points (x, number of samples) of a group."""
    groups = {name: (colour, [row for row in rows if belongs(row)]) for name, (colour, belongs) in GROUPS.items()}
    return [Series(label=name, colour=colour, points=count(own)) for name, (colour, own) in groups.items() if own]


def lengths_chart(rows: Sequence[TeacherSample]) -> Chart:
    """Return a histogram of the number of tokens per sample."""
    tokens = [row.completion_tokens for row in rows]
    edges = np.histogram_bin_edges(tokens, bins=min(BINS, max(tokens) - min(tokens) + 1))

    def bars(own: list[TeacherSample]) -> list[tuple[float, float]]:
        counts, _ = np.histogram([row.completion_tokens for row in own], bins=edges)
        return list(zip((edges[:-1] + edges[1:]) / 2, counts, strict=True))

    low, middle, high = np.percentile(tokens, [10, 50, 90])
    return Chart(
        name="filters",
        kind="bars",
        stacked=True,
        x="tokens per sample",
        y="samples",
        series=_stacked_series(rows, bars),
        alt=f"Histogram of sample lengths: median {middle:.0f} tokens, 10 % below {low:.0f}, 10 % above {high:.0f}.",
        caption="Length of all samples, including reasoning.",
    )


def families_chart(rows: Sequence[TeacherSample]) -> Chart:
    """Return a chart of kept and dropped samples with one bar for each family."""
    names = list(dict.fromkeys(row.family for row in rows))
    words = "; ".join(
        f"{name}: {sum(r.family == name for r in rows)} samples, {sum(r.family == name and not r.dropped for r in rows)} kept"
        for name in names
    )
    return Chart(
        name="families",
        kind="bars",
        flip=True,
        stacked=True,
        labels=names,
        y="samples",
        series=_stacked_series(
            rows, lambda own: [(place, sum(r.family == name for r in own)) for place, name in enumerate(names)]
        ),
        alt=f"Samples by family. {words}.",
        caption="Kept and dropped samples of each family.",
    )
