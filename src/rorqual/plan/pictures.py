"""Draw the three figures of a plan: cost against tokens, memory by part, and price against cache hit rate.

The caller passes the colours, because this package must not import the module of the HTML theme.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from rorqual.plan.memory import Memory
from rorqual.plan.numbers import gigabytes, money, short
from rorqual.plan.price import Price


class Colours(Protocol):
    """The theme colours that a figure needs."""

    @property
    def ground(self) -> str: ...
    @property
    def ink(self) -> str: ...
    @property
    def faint(self) -> str: ...
    @property
    def before(self) -> str: ...
    @property
    def after(self) -> str: ...
    @property
    def off(self) -> str: ...
    @property
    def on(self) -> str: ...


@dataclass(frozen=True)
class Drawing:
    """A figure: its `alt` text, the `caption` below it, and the function `draw` that draws it."""

    name: str
    alt: str
    caption: str
    draw: Callable[[Colours], Figure]


@dataclass(frozen=True)
class Line:
    """The cost in USD per training token on one kind of hardware. `own` is True for the requested hardware."""

    name: str
    usd_per_token: float
    own: bool = False


def cost_against_tokens(
    lines: Sequence[Line], tokens: float, marks: Sequence[tuple[str, float, float]] = ()
) -> Drawing:
    """Plot training cost around `tokens` tokens, with one line per kind of hardware.

    `marks` holds published training runs as (name, tokens, USD).
    """
    alt = "Training cost grows in proportion to tokens: " + "; ".join(
        f"{line.name} {money(line.usd_per_token * tokens)}" for line in lines
    )
    caption = (
        "Each line uses the table's rent and utilisation. The thick line is the requested hardware; the dot marks "
        f"{short(tokens)} tokens on it."
    )
    return Drawing("plan-cost", alt + ".", caption, partial(_draw_cost, lines=lines, tokens=tokens, marks=marks))


def _draw_cost(
    colours: Colours, lines: Sequence[Line], tokens: float, marks: Sequence[tuple[str, float, float]]
) -> Figure:
    figure, axis = _panel(7.2, 3.6)
    ends = (tokens / 30, tokens * 10)
    own = next(line for line in lines if line.own)
    shown = sorted(
        (line for line in lines if line.usd_per_token < 10 * own.usd_per_token), key=lambda one: one.usd_per_token
    )
    low, high = shown[0].usd_per_token * ends[0] / 1.5, shown[-1].usd_per_token * ends[1] * 1.5
    for line in shown:
        colour = colours.after if line.own else colours.before
        axis.plot(ends, [line.usd_per_token * end for end in ends], color=colour, linewidth=2 if line.own else 1)
    _label(axis, colours, [(line.usd_per_token * ends[1], line.name, line.own) for line in shown], ends[1], (low, high))
    usd = own.usd_per_token * tokens
    axis.plot([tokens], [usd], "o", color=colours.after, markersize=7)
    _note(axis, colours, money(usd), (tokens, usd), (-8, 12), colours.ink)
    for name, at, published in marks:
        axis.plot([at], [published], "D", color=colours.off, markersize=4)
        _note(axis, colours, f"{name}: {money(published)} published", (at, published), (10, -14), colours.off)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlim(*ends)
    axis.set_ylim(low, high)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"${short(value)}"))
    axis.yaxis.set_major_locator(LogLocator(10))
    _without_minor(axis)
    axis.set_title("Training cost")
    axis.set_xlabel("tokens")
    return figure


def memory_by_part(rows: Sequence[tuple[str, Memory]], usable: float) -> Drawing:
    """Plot device memory by part, with one bar per layout and a line at the usable memory."""
    alt = "Memory of the fullest device: " + "; ".join(f"{name}: {gigabytes(memory.total)}" for name, memory in rows)
    caption = f"The fullest device of each layout. The line marks the {gigabytes(usable)} usable on a device."
    return Drawing(
        "plan-memory",
        f"{alt}, of {gigabytes(usable)} usable.",
        caption,
        partial(_draw_memory, rows=rows, usable=usable),
    )


def _draw_memory(colours: Colours, rows: Sequence[tuple[str, Memory]], usable: float) -> Figure:
    figure, axis = _panel(7.2, 1.25 + 0.5 * len(rows))
    fills = (colours.after, colours.off, colours.on, colours.before)
    places = list(range(len(rows)))[::-1]
    widest = max([usable, *(memory.total for _, memory in rows)])
    for place, (_, memory) in zip(places, rows, strict=True):
        left = 0.0
        for fill, (name, size) in zip(fills, memory.parts(), strict=True):
            axis.barh(place, size, left=left, color=fill, height=0.55, label=name if place == places[0] else None)
            left += size
        _note(axis, colours, gigabytes(left), (left, place), (6, -3), colours.ink)
    axis.axvline(usable, color=colours.ink, linewidth=1, linestyle=(0, (4, 3)), zorder=2.5)
    axis.annotate(f"{gigabytes(usable)} usable", (usable, len(rows) - 0.5), xytext=(-4, 2), textcoords="offset points", fontsize=8,
                  color=colours.faint, ha="right", annotation_clip=False)  # fmt: skip
    axis.set_yticks(places, [name for name, _ in rows], color=colours.ink)
    axis.set_xlim(0, widest * 1.14)
    axis.set_ylim(-0.6, len(rows) - 0.3)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: gigabytes(value) if value else "0"))
    axis.grid(visible=False, axis="y")
    axis.set_title("Memory per device", pad=16)
    figure.legend(*axis.get_legend_handles_labels(), ncols=4, loc="outside lower center")
    return figure


def price_against_hit_rate(own: Price, others: Sequence[Price], prompt: int, reply: int, hit_rate: float) -> Drawing:
    """Plot USD per million tokens against the prompt's cache hit rate, for the plan's price `own` and for API prices
    `others`."""
    alt = f"Price of a million tokens at a hit rate of {hit_rate:.0%}: " + "; ".join(
        f"{row.name} {money(row.blended(prompt, reply, hit_rate))}" for row in (own, *others)
    )
    caption = (
        f"Requests have {prompt:,} prompt and {reply:,} reply tokens, which count alike. Grey lines are API prices with "
        "their dates. API prices include the cost of the cache's disk; this plan does not."
    )
    draw = partial(_draw_price, own=own, others=others, prompt=prompt, reply=reply, hit_rate=hit_rate)
    return Drawing("plan-price", alt + ".", caption, draw)


def _draw_price(
    colours: Colours, own: Price, others: Sequence[Price], prompt: int, reply: int, hit_rate: float
) -> Figure:
    figure, axis = _panel(7.2, 3.6)
    rates = [step / 50 for step in range(51)]
    rows = sorted((own, *others), key=lambda row: row.blended(prompt, reply, 1.0))
    every = [row.blended(prompt, reply, rate) for row in rows for rate in (0.0, 1.0)]
    low, high = min(every) / 1.25, max(every) * 1.25
    for row in rows:
        colour = colours.after if row is own else colours.before
        axis.plot(
            rates, [row.blended(prompt, reply, rate) for rate in rates], color=colour, linewidth=2 if row is own else 1
        )
    ends = [
        (row.blended(prompt, reply, 1.0), "this plan" if row is own else f"{row.name}, {row.date}", row is own)
        for row in rows
    ]
    _label(axis, colours, ends, 1.0, (low, high))
    own_price = own.blended(prompt, reply, hit_rate)
    axis.plot([hit_rate], [own_price], "o", color=colours.after, markersize=7)
    _note(axis, colours, money(own_price), (hit_rate, own_price), (4, 12), colours.ink)
    axis.set_yscale("log")
    axis.set_xlim(0, 1)
    axis.set_ylim(low, high)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    axis.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"${value:.2g}"))
    _without_minor(axis)
    axis.set_title("Price of a million tokens")
    axis.set_xlabel("cache hit rate of the prompt")
    return figure


def _label(
    axis: Axes, colours: Colours, ends: Sequence[tuple[float, str, bool]], at: float, limits: tuple[float, float]
) -> None:
    """Label lines at their right ends, on a logarithmic axis. `ends` holds (height, name, own) of each line.

    Labels do not overlap: a label that had to move is connected to its line by a thin stroke.
    """
    bottom, top = (math.log10(limit) for limit in limits)
    span = top - bottom
    wanted = [(math.log10(height) - bottom) / span for height, _, _ in ends]
    for (height, name, own), place in zip(ends, spread(wanted, 0.058), strict=True):
        axis.annotate(
            name, (at, height), xycoords="data", xytext=(1.035, place), textcoords="axes fraction", va="center", fontsize=8,
            color=colours.ink if own else colours.faint, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colours.faint, "linewidth": 0.5, "shrinkA": 1, "shrinkB": 0, "relpos": (0, 0.5)},
        )  # fmt: skip


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Return label heights near the `wanted` heights (ascending), at least `gap` apart.

    Labels that are moved apart are centred on the mean of their wanted heights.
    """
    groups: list[list[float]] = []
    for height in wanted:
        groups.append([height])
        while len(groups) > 1 and _bottom(groups[-1], gap) < _bottom(groups[-2], gap) + gap * len(groups[-2]):
            groups[-2:] = [groups[-2] + groups[-1]]
    return [_bottom(group, gap) + gap * place for group in groups for place in range(len(group))]


def _bottom(group: Sequence[float], gap: float) -> float:
    """Return the height of the lowest label in a group that is centred on the mean of its wanted heights."""
    return sum(group) / len(group) - gap * (len(group) - 1) / 2


def _note(
    axis: Axes, colours: Colours, text: str, at: tuple[float, float], offset: tuple[int, int], colour: str
) -> None:
    """Write a label next to a point, on a background that hides the lines behind it."""
    box = {"facecolor": colours.ground, "edgecolor": "none", "pad": 1.0, "alpha": 0.85}
    axis.annotate(
        text, at, xytext=offset, textcoords="offset points", fontsize=8.5, color=colour, bbox=box, zorder=4,
        ha="right" if offset[0] < 0 else "left",
    )  # fmt: skip


def _without_minor(axis: Axes) -> None:
    for side in (axis.xaxis, axis.yaxis):
        side.set_minor_locator(NullLocator())
        side.set_minor_formatter(NullFormatter())


def _panel(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()
