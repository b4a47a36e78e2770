"""Read, plot and summarise time series from training records."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from rorqual.evals.pictures import Theme, curve
from rorqual.evals.reading import Record


def series(records: Sequence[Record], *names: str) -> tuple[list[float], list[float]]:
    """Return the steps and values of a metric. The value of a record is the first of `names` that is a number.

    Records without any of `names` are skipped.
    """
    steps, values = [], []
    for place, record in enumerate(records):
        value = next((record[name] for name in names if isinstance(record.get(name), int | float)), None)
        if value is not None:
            steps.append(float(record.get("step", place)))
            values.append(float(value))
    return steps, values


def _nothing(axis: Axes, theme: Theme) -> None:
    axis.text(0.5, 0.5, "not recorded", ha="center", va="center", transform=axis.transAxes, color=theme.faint)


def draw_series(
    axis: Axes, theme: Theme, records: Sequence[Record], wanted: Sequence[tuple[tuple[str, ...], str, str]]
) -> None:
    """Plot curves over the steps. Each item of `wanted` is (alternative metric names, colour, label)."""
    drawn = 0
    for names, colour, label in wanted:
        steps, values = series(records, *names)
        if values:
            curve(axis, steps, values, colour, label)
            drawn += 1
    if not drawn:
        _nothing(axis, theme)
    elif drawn > 1:
        axis.legend(loc="best")
    axis.set_xlabel("step")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def ends(records: Sequence[Record], *names: str) -> str:
    """Return a phrase with the means of the first and the last twentieth of a series."""
    _, values = series(records, *names)
    if not values:
        return "not recorded"
    edge = max(1, len(values) // 20)
    return f"{np.mean(values[:edge]):.3g} at first to {np.mean(values[-edge:]):.3g} at last"
