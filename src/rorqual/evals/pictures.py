"""Plotting helpers: light and dark themes, a common style, and PNG encoding that depends on the data alone."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rorqual.report.chart import DARK, LIGHT, Theme

THEMES = (LIGHT, DARK)


@dataclass(frozen=True)
class Picture:
    """A picture that is drawn once per theme. `alt` is its description in words, and `caption` is printed below it."""

    name: str
    alt: str
    caption: str
    draw: Callable[[Theme], Figure]


def png(picture: Picture, theme: Theme) -> bytes:
    """Return the PNG of `picture`. The same data gives the same bytes, because the file has no date and no version."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_style(theme))
        figure = picture.draw(theme)
        FigureCanvasAgg(figure)
        target = io.BytesIO()
        figure.savefig(target, format="png", dpi=150, metadata={"Software": None})
    return target.getvalue()


def _style(theme: Theme) -> Any:
    return {
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "text.parse_math": False,
        "axes.titlesize": 9.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.labelsize": 8.5,
        "axes.edgecolor": theme.faint,
        "axes.facecolor": theme.ground,
        "axes.labelcolor": theme.faint,
        "axes.titlecolor": theme.ink,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.7,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": theme.grid,
        "grid.linewidth": 0.7,
        "figure.facecolor": theme.ground,
        "text.color": theme.ink,
        "xtick.color": theme.faint,
        "ytick.color": theme.faint,
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "legend.frameon": False,
        "legend.fontsize": 8,
        "lines.solid_capstyle": "round",
    }


def panels(count: int, columns: int, width: float, height: float, *, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    """Return a figure of `count` panels, each `width` by `height` inches. Unused grid cells stay empty."""
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=sharey)
    axes = list(grid.flat)
    for axis in axes[count:]:
        axis.set_axis_off()
    return figure, axes[:count]


def smooth(values: Sequence[float]) -> np.ndarray:
    """Return a centred running mean over a twentieth of the series. The window is truncated at both ends."""
    series = np.asarray(values, float)
    window = max(1, len(series) // 20) | 1
    kernel = np.ones(window)
    return np.convolve(series, kernel, "same") / np.convolve(np.ones(len(series)), kernel, "same")


def curve(axis: Axes, steps: Sequence[float], values: Sequence[float], colour: str, label: str = "") -> None:
    """Plot the raw series in a faint colour, with its running mean on top."""
    axis.plot(steps, values, color=colour, alpha=0.28, linewidth=0.8)
    axis.plot(steps, smooth(values), color=colour, linewidth=1.7, label=label or None)
