"""Charts as data, and functions that draw charts as PNG files for light and dark pages, or as SVG and PDF files. The same data
gives the same bytes."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator, PercentFormatter

from rorqual.core.config import Config
from rorqual.core.errors import ConfigError
from rorqual.report.theme import DARK, LIGHT, Theme

Colour = Literal["after", "off", "on", "before", "ink", "faint"]
COLOURS: tuple[Colour, ...] = get_args(Colour)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "h")
"""The markers of consecutive series in a chart. Series differ by marker as well as by colour, for readers who cannot
distinguish the colours."""
NARROW = 5.0
"""Largest width in inches of a chart that fits on a phone's screen. A wider chart scrolls on a phone."""


class Series(Config):
    """One series of a panel: points (x, y), with optional bounds `low` and `high` of y.

    - `by_seed` has one line per seed, drawn in a faint colour behind the series.
    - `style` selects how the series is drawn; the default style is the panel's `kind`. `smooth` draws the points in a faint
      colour, and on top the points' running mean over a twentieth of the series. `dashed` draws a dashed reference line.
    - `texts` are written beside the points of the series.
    - `colour` is the name of a colour of the theme. By default, series take the colours in the order of `COLOURS`. If
      `hollow` is set, the markers are not filled.
    """

    label: str
    points: tuple[tuple[float, float], ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    by_seed: tuple[tuple[tuple[float, float], ...], ...] = ()
    style: Literal["", "bars", "lines", "points", "smooth", "dashed"] = ""
    texts: tuple[str, ...] = ()
    colour: Colour | Literal[""] = ""
    hollow: bool = False


class Panel(Config):
    """One pair of axes with its series. With `labels`, the x values are indices into `labels`, counted from 0.

    - With `labels`, bars or points of different series with the same x are drawn side by side, unless `stacked` is set.
    - The kind `map` is a heat map. Each series is a row, each point is a cell, and y determines the shade of the cell.
      A cell with y = NaN is empty.
    - `flip`: the x axis runs downwards, so that bars are horizontal. `stacked` stacks bars with the same x.
    - `percent`: y is a share, shown in percent. `log` names the axes that have a logarithmic scale.
    - `x_ticks` and `y_ticks` are (value, text) pairs. `limits` is the (lowest, highest) y value of the y axis.
    - `ends`: each line has its label at the line's right end instead of in the legend.
    """

    title: str = ""
    kind: Literal["lines", "bars", "points", "map"] = "lines"
    x: str = ""
    y: str = ""
    labels: tuple[str, ...] = ()
    series: tuple[Series, ...] = ()
    percent: bool = False
    flip: bool = False
    stacked: bool = False
    log: Literal["", "x", "y", "xy"] = ""
    x_ticks: tuple[tuple[float, str], ...] = ()
    y_ticks: tuple[tuple[float, str], ...] = ()
    limits: tuple[float, float] | None = None
    ends: bool = False


class Chart(Panel):
    """A chart of one panel, or of several `panels` in `columns` columns. If all panels have the same series, the panels share
    one legend.

    `alt` describes the chart in words, and `caption` is printed below the chart. `width` is the width of the chart in inches,
    and `height` is the height of one panel in inches.
    """

    name: str
    caption: str = ""
    alt: str = ""
    panels: tuple[Panel, ...] = ()
    columns: int = 3
    width: float = 0.0
    height: float = 0.0

    @property
    def alternative_text(self) -> str:
        """The description of the chart in words. Without `alt`, the description states the first and last value of each
        series."""
        ends = "; ".join(
            f"{s.label}: {s.points[0][1]:.3g} to {s.points[-1][1]:.3g}" for s in self.series if s.points and s.label
        )
        return self.alt or ". ".join(filter(None, (self.title, ends))) + "."

    @property
    def width_inches(self) -> float:
        """The width of the chart in inches."""
        crowd = len(self.labels) * max(1, len(self.series) * 0.45) if self.kind == "bars" and not self.flip else 0
        return self.width or (7.4 if self.panels else min(11, max(6.6, 0.9 * crowd)))


@dataclass(frozen=True)
class DrawnChart:
    """A drawn chart, as PNG files for light and dark pages."""

    name: str
    alt: str
    caption: str
    narrow: bool
    light: bytes
    dark: bytes


def draw(chart: Chart) -> DrawnChart:
    """Draw a chart in the light and the dark theme."""
    light, dark = (render_figure(partial(figure_of, chart), theme) for theme in (LIGHT, DARK))
    return DrawnChart(chart.name, chart.alternative_text, chart.caption, chart.width_inches <= NARROW, light, dark)


METADATA: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
"""For each format of a drawn figure: the metadata with a date or a version, which files leave out."""


def render_figure(make: Callable[[Theme], Figure], theme: Theme, format_: str = "png") -> bytes:
    """Return the PNG, SVG or PDF file of the matplotlib figure `make(theme)`. The same figure gives the same bytes. Raises
    ConfigError for another format."""
    if format_ not in METADATA:
        raise ConfigError(f"'{format_}' is no format of a figure", where="plot", remedy="Use .svg, .pdf or .png.")
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(theme.matplotlib_settings | {"svg.hashsalt": "rorqual"})
        figure = make(theme)
        FigureCanvasAgg(figure)
        target = io.BytesIO()
        figure.savefig(target, format=format_, dpi=150, metadata=METADATA[format_])
    return target.getvalue()


def figure_of(chart: Chart, theme: Theme) -> Figure:
    """Return the matplotlib figure of a chart."""
    panels = chart.panels or (chart,)
    maps = panels[0].kind == "map"
    columns = min(chart.columns, len(panels))
    lanes = max(len(panel.labels) if panel.flip else len(panel.series) if maps else 0 for panel in panels)
    height = chart.height or (0.9 + 0.28 * lanes if lanes else 2.9)
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(chart.width_inches, height * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, sharey=_can_share_y_axis(panels)).flat)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    for axis, panel in zip(axes, panels, strict=False):
        _draw_heat_map(axis, panel, theme) if maps else _draw_panel(axis, panel, theme)
    legends = [axis.get_legend_handles_labels() for axis in axes[: len(panels)]]
    if all(labels == legends[0][1] for _, labels in legends):
        if len(legends[0][1]) > 1 and not chart.ends:
            figure.legend(*legends[0], loc="outside upper left", ncols=3 if chart.width_inches > NARROW else 2)
    else:
        for axis, (_, labels) in zip(axes, legends, strict=False):
            if len(labels) > 1:
                axis.legend(loc="best")
    return figure


def _can_share_y_axis(panels: Sequence[Panel]) -> bool:
    """Return whether all panels can share one y axis. Panels can share a y axis if they have the same categories (horizontal
    bars and heat maps) or the same y limits."""
    lying = panels[0].flip or panels[0].kind == "map"
    names = {panel.labels if panel.flip else tuple(series.label for series in panel.series) for panel in panels}
    return len(names if lying else {panel.limits for panel in panels}) == 1 and (lying or panels[0].limits is not None)


def _draw_panel(axis: Axes, panel: Panel, theme: Theme) -> None:
    lanes = [series for series in panel.series if (series.style or panel.kind) in ("bars", "points")]
    places = [x for series in lanes for x, _ in series.points]
    crowded = bool(panel.labels) and not panel.stacked and len(set(places)) < len(places)
    step = 0.8 / len(lanes) if crowded else 0.0
    tops: np.ndarray | float = 0.0
    for place, series in enumerate(panel.series):
        shift = step * (lanes.index(series) - (len(lanes) - 1) / 2) if series in lanes else 0.0
        xs, ys = np.array(series.points, float).reshape(-1, 2).T
        if (series.style or panel.kind) == "bars":
            _draw_bars(axis, panel, theme, place, xs + shift, ys, tops, 0.92 * step or _bar_width(panel, xs))
            tops = tops + ys if panel.stacked else 0.0
        else:
            _draw_line(axis, panel, theme, place, xs + shift, ys)
    if not any(series.points for series in panel.series):
        axis.text(0.5, 0.5, "not recorded", ha="center", va="center", transform=axis.transAxes, color=theme.faint)
    _set_axes(axis, panel, theme)
    if panel.ends:
        _label_line_ends(axis, panel, theme)


def _bar_width(panel: Panel, xs: np.ndarray) -> float:
    return 0.7 if panel.labels or len(xs) < 2 else 0.98 * float(xs[1] - xs[0])


def _colour(series: Series, place: int, theme: Theme) -> str:
    return str(getattr(theme, series.colour or COLOURS[place % len(COLOURS)]))


def _draw_bars(
    axis: Axes,
    panel: Panel,
    theme: Theme,
    place: int,
    xs: np.ndarray,
    ys: np.ndarray,
    base: np.ndarray | float,
    width: float,
) -> None:
    series = panel.series[place]
    bars, lines = (axis.barh, axis.hlines) if panel.flip else (axis.bar, axis.vlines)
    bars(xs, ys, width, base, color=_colour(series, place, theme), label=series.label)
    if series.low:
        lines(xs, series.low, series.high, color=theme.ink, linewidth=1.1)
    for line in series.by_seed:
        axis.plot(*_plot_coordinates(panel, xs, [y for _, y in line]), ".", markersize=3, color=theme.ink, alpha=0.55)
    ends: list[Any] = [base + ys, series.high or ys, *([y for _, y in line] for line in series.by_seed)]
    _write_texts(axis, panel, place, xs, np.max(ends, axis=0), theme.ink)


def _draw_line(axis: Axes, panel: Panel, theme: Theme, place: int, xs: np.ndarray, ys: np.ndarray) -> None:
    series = panel.series[place]
    style, colour, marker = series.style or panel.kind, _colour(series, place, theme), MARKERS[place % len(MARKERS)]
    looks: dict[str, dict[str, Any]] = {
        "lines": {"linewidth": 1.1 if series.colour == "before" else 1.8, "markersize": 3.5, "marker": "" if panel.ends else marker,
                  "markevery": max(1, len(xs) // 8)},
        "points": {"linestyle": "none", "marker": marker, "markersize": 5.5, "markerfacecolor": theme.ground if series.hollow else colour},
        "smooth": {"linewidth": 1.7},
        "dashed": {"linewidth": 1.2, "linestyle": "--"},
    }  # fmt: skip
    for line in series.by_seed:
        axis.plot(*_plot_coordinates(panel, *zip(*line, strict=True)), color=colour, alpha=0.25, linewidth=0.8)
    if style == "smooth":
        axis.plot(xs, ys, color=colour, alpha=0.28, linewidth=0.8)
        ys = running_mean(ys)
    if series.low and style == "points":
        (axis.hlines if panel.flip else axis.vlines)(xs, series.low, series.high, color=colour, linewidth=1.5)
    elif series.low:
        axis.fill_between(xs, series.low, series.high, color=colour, alpha=0.15, linewidth=0)
    axis.plot(*_plot_coordinates(panel, xs, ys), color=colour, label=series.label, **looks[style])
    _write_texts(axis, panel, place, xs, ys, colour)


def _plot_coordinates(panel: Panel, xs: Any, ys: Any) -> tuple[Any, Any]:
    """Return the (horizontal, vertical) coordinates of the points (`xs`, `ys`). If the x axis of the panel runs downwards
    (`flip`), x and y are exchanged."""
    return (ys, xs) if panel.flip else (xs, ys)


def _write_texts(axis: Axes, panel: Panel, place: int, xs: np.ndarray, ys: np.ndarray, colour: str) -> None:
    series = panel.series[place]
    lying, bars = panel.flip, (series.style or panel.kind) == "bars"
    offset = (5, -3) if lying else (0, 3) if bars else (7, -12 if place % 2 else 6)
    for x, y, text in zip(xs, ys, series.texts, strict=False):
        axis.annotate(text, _plot_coordinates(panel, x, y), xytext=offset, textcoords="offset points", fontsize=8, color=colour,
                      ha="center" if bars and not lying else "left")  # fmt: skip


def _set_axes(axis: Axes, panel: Panel, theme: Theme) -> None:
    along, values = (axis.yaxis, axis.xaxis) if panel.flip else (axis.xaxis, axis.yaxis)
    axis.set_title(panel.title)
    along.set_label_text(panel.x)
    values.set_label_text(panel.y)
    if any(series.texts for series in panel.series):
        axis.margins(x=0.14) if panel.flip else axis.margins(y=0.14)
    if panel.limits:
        (axis.set_xlim if panel.flip else axis.set_ylim)(*panel.limits)
    if panel.log:
        axis.set_xscale("log" if "x" in panel.log else "linear")
        axis.set_yscale("log" if "y" in panel.log else "linear")
    if panel.percent:
        values.set_major_formatter(PercentFormatter(1.0, decimals=0))
    if panel.labels:
        along.set_ticks(range(len(panel.labels)), panel.labels)
        along.set_tick_params(labelcolor=theme.ink)
        along.grid(visible=False)
    elif any(series.style == "smooth" for series in panel.series):
        along.set_major_locator(MaxNLocator(integer=True))
    if panel.flip:
        axis.set_ylim(len(panel.labels) - 0.5, -0.5)
    for ruler, ticks in ((axis.xaxis, panel.x_ticks), (axis.yaxis, panel.y_ticks)):
        if ticks:
            ruler.set_ticks([at for at, _ in ticks], [text for _, text in ticks])
            ruler.set_minor_locator(NullLocator())


def _heat_map(theme: Theme) -> LinearSegmentedColormap:
    """Return a heat map's colour map, from the page background (zero) to the text colour."""
    return LinearSegmentedColormap.from_list(f"rorqual-{theme.name}", [theme.ground, theme.after, theme.ink])


def _draw_heat_map(axis: Axes, panel: Panel, theme: Theme) -> None:
    values = np.array([[y for _, y in series.points] for series in panel.series], float)
    top = panel.limits[1] if panel.limits else float(np.nanmax(values))
    axis.imshow(values, cmap=_heat_map(theme), vmin=0, vmax=top, aspect="auto", interpolation="nearest")
    for row, series in enumerate(panel.series):
        for (x, y), text in zip(series.points, series.texts, strict=False):
            colour = theme.faint if math.isnan(y) else theme.ground if y > 0.35 * top else theme.ink
            axis.text(x, row, text, ha="center", va="center", fontsize=8, color=colour)
    axis.set(title=panel.title, xlabel=panel.x, ylabel=panel.y)
    axis.set_yticks(range(len(panel.series)), [series.label for series in panel.series], color=theme.ink)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    if panel.labels:
        axis.set_xticks(range(len(panel.labels)), panel.labels)
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)


def _label_line_ends(axis: Axes, panel: Panel, theme: Theme) -> None:
    """Label each line at its right end. A thin stroke connects a label to its line, because overlapping labels are moved
    apart."""
    lines = sorted(
        (series for series in panel.series if len(series.points) > 1), key=lambda series: series.points[-1][1]
    )
    axis.margins(x=0)
    axis.autoscale_view()
    transform = axis.transData + axis.transAxes.inverted()
    wanted = [float(transform.transform(series.points[-1])[1]) for series in lines]
    for series, height in zip(lines, spread_labels(wanted, 0.058), strict=True):
        axis.annotate(
            series.label, series.points[-1], xytext=(1.035, height), textcoords="axes fraction", va="center", fontsize=8,
            color=theme.faint if series.colour == "before" else theme.ink, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": theme.faint, "linewidth": 0.5, "shrinkA": 1, "shrinkB": 0, "relpos": (0, 0.5)},
        )  # fmt: skip


def spread_labels(wanted: Sequence[float], gap: float) -> list[float]:
    """Return label heights near the `wanted` heights (ascending), at least `gap` apart.

    A group of labels that would overlap is centred on the mean of the group's wanted heights.
    """
    groups: list[list[float]] = []
    for height in wanted:
        groups.append([height])
        while len(groups) > 1 and _lowest_label_height(groups[-1], gap) < _lowest_label_height(
            groups[-2], gap
        ) + gap * len(groups[-2]):
            groups[-2:] = [groups[-2] + groups[-1]]
    return [_lowest_label_height(group, gap) + gap * place for group in groups for place in range(len(group))]


def _lowest_label_height(group: Sequence[float], gap: float) -> float:
    """Return the height of the lowest label in a group that is centred on the mean of its wanted heights."""
    return sum(group) / len(group) - gap * (len(group) - 1) / 2


def running_mean(values: np.ndarray) -> np.ndarray:
    """Return the centred running mean of `values` over a twentieth of the series. At both ends of the series, the window is
    truncated."""
    window = max(1, len(values) // 20) | 1
    kernel = np.ones(window)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")
