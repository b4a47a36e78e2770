"""Charts draw the points that they are given, and the same bytes for the same data."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.patches import Rectangle

from rorqual.report.chart import NARROW, Chart, Panel, Series, draw, figure_of, running_mean, spread_labels
from rorqual.report.theme import DARK, LIGHT

ONE = Series(label="one", points=((0, 1), (1, 3)))
TWO = Series(label="two", points=((0, 2), (1, 4)), low=(1, 3), high=(3, 5), texts=("a", "b"))


def chart(**given: Any) -> Chart:
    return Chart(name="c", title="t", **{"series": (ONE, TWO)} | given)


def bars_of(drawn: Chart) -> list[tuple[float, float, float, float]]:
    (axis,) = figure_of(drawn, LIGHT).axes
    found = [patch for container in axis.containers for patch in container if isinstance(patch, Rectangle)]
    return [tuple(round(v, 6) for v in (p.get_x(), p.get_y(), p.get_width(), p.get_height())) for p in found]


def test_bars_stand_beside_each_other_or_on_top() -> None:
    bars = bars_of(chart(kind="bars", labels=("x", "y")))
    assert [height for *_, height in bars] == [1, 3, 2, 4]
    edges = sorted((x, x + width) for x, _, width, _ in bars)
    assert all(end <= start for (_, end), (start, _) in pairwise(edges))
    stacked = bars_of(chart(kind="bars", labels=("x", "y"), stacked=True))
    assert [(y, height) for _, y, _, height in stacked] == [(0, 1), (0, 3), (1, 2), (3, 4)]
    three = [Series(label=f"{n}", points=[(0, n), (1, 2 * n)]) for n in (1, 2, 4)]
    tower = bars_of(Chart(name="c", kind="bars", labels=("x", "y"), stacked=True, series=three))
    assert [(y, height) for _, y, _, height in tower] == [(0, 1), (0, 2), (1, 2), (2, 4), (3, 4), (6, 8)]
    lying = bars_of(chart(kind="bars", labels=("x", "y"), stacked=True, flip=True))
    assert [(x, width) for x, _, width, _ in lying] == [(0, 1), (0, 3), (1, 2), (3, 4)]


def test_a_lying_chart_reads_from_the_top() -> None:
    (axis,) = figure_of(chart(kind="points", labels=("x", "y"), flip=True, x="kind", y="value"), LIGHT).axes
    bottom, top = axis.get_ylim()
    assert bottom > top and axis.get_xlabel() == "value" and axis.get_ylabel() == "kind"
    assert [label.get_text() for label in axis.get_yticklabels()] == ["x", "y"]


@pytest.mark.parametrize("style", ["lines", "points", "bars"])
def test_intervals_and_texts_are_drawn(style: str) -> None:
    (axis,) = figure_of(chart(kind=style, labels=("x", "y")), LIGHT).axes
    assert len(axis.collections) == 1 and [text.get_text() for text in axis.texts] == ["a", "b"]


def test_a_smooth_series_keeps_its_points_and_adds_their_running_mean() -> None:
    values = [(step, step % 2) for step in range(60)]
    (axis,) = figure_of(chart(series=[Series(label="s", style="smooth", points=values)]), LIGHT).axes
    raw, mean = (line.get_ydata() for line in axis.lines)
    assert list(raw) == [y for _, y in values] and np.allclose(
        mean, running_mean(np.array([y for _, y in values], float))
    )
    assert all(tick == round(tick) for tick in axis.get_xticks()), "steps are whole numbers"
    assert running_mean(np.ones(7)).tolist() == [1.0] * 7


def test_a_map_shows_each_series_as_a_row() -> None:
    rows = [Series(label=name, points=((0, v), (1, 2 * v)), texts=("x", "y")) for name, v in (("a", 0.1), ("b", 0.4))]
    (axis,) = figure_of(Chart(name="m", kind="map", series=rows, labels=("l", "r")), LIGHT).axes
    assert np.asarray(axis.images[0].get_array()).tolist() == [[0.1, 0.2], [0.4, 0.8]]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b"]
    assert axis.images[0].get_clim() == (0, 0.8), "the largest value has the strongest shade"
    (axis,) = figure_of(Chart(name="m", kind="map", series=rows, labels=("l", "r"), limits=(0, 1.6)), LIGHT).axes
    assert axis.images[0].get_clim() == (0, 1.6), "maps with common limits have common shades"


def test_panels_share_one_legend_if_they_show_the_same_series() -> None:
    alike = figure_of(Chart(name="p", panels=[Panel(series=(ONE, TWO))] * 2), LIGHT)
    assert len(alike.legends) == 1 and not any(axis.get_legend() for axis in alike.axes)
    other = figure_of(Chart(name="p", panels=(Panel(series=(ONE, TWO)), Panel(series=(ONE,)))), LIGHT)
    assert not other.legends and [bool(axis.get_legend()) for axis in other.axes] == [True, False]


def test_settings_of_the_axes_reach_them() -> None:
    given = {
        "x": "steps",
        "y": "loss",
        "limits": (1, 8),
        "log": "xy",
        "x_ticks": ((1, "one"),),
        "y_ticks": ((2, "two"),),
    }
    (axis,) = figure_of(chart(series=(Series(label="s", points=((1, 2), (2, 4))),), **given), LIGHT).axes
    assert (axis.get_title(), axis.get_xlabel(), axis.get_ylabel()) == ("t", "steps", "loss")
    assert axis.get_ylim() == (1, 8) and axis.get_xscale() == axis.get_yscale() == "log"
    assert [label.get_text() for label in (*axis.get_xticklabels(), *axis.get_yticklabels())] == ["one", "two"]
    (axis,) = figure_of(chart(percent=True), LIGHT).axes
    assert axis.yaxis.get_major_formatter()(0.25) == "25%"
    ends = figure_of(chart(ends=True, series=(ONE, ONE.model_copy(update={"label": "other"}))), LIGHT)
    assert {text.get_text() for text in ends.axes[0].texts} == {"one", "other"} and not ends.legends


def test_a_chart_without_points_says_so() -> None:
    assert figure_of(chart(series=()), LIGHT).axes[0].texts[0].get_text() == "not recorded"


def test_the_same_data_gives_the_same_bytes_and_each_theme_its_own() -> None:
    one, two = draw(chart()), draw(chart())
    assert one == two and one.light != one.dark and LIGHT != DARK
    assert b"matplotlib" not in one.light.lower() and b"tIME" not in one.light
    assert one.alt == "t. one: 1 to 3; two: 2 to 4." and draw(chart(alt="words")).alt == "words"
    assert [draw(chart(width=width)).narrow for width in (NARROW, 6.0)] == [True, False]


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12).map(sorted))
def test_labels_stand_apart_and_stay_near(wanted: list[float]) -> None:
    placed = spread_labels(wanted, 0.05)
    assert all(b - a >= 0.05 - 1e-9 for a, b in pairwise(placed))
    assert all(abs(a - b) <= 0.05 * len(wanted) for a, b in zip(placed, wanted))
    assert spread_labels([0.1, 0.5], 0.05) == [0.1, 0.5]
