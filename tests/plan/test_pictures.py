"""The pictures: they draw, their words name what they show, and labels do not lie on each other."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg

from rorqual.evals.pictures import LIGHT
from rorqual.model.presets import preset
from rorqual.plan.memory import PRECISIONS, Layout, device_memory
from rorqual.plan.pictures import Line, cost_against_tokens, memory_by_part, price_against_hit_rate, spread
from rorqual.plan.price import PRICES, Price


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12).map(sorted))
def test_labels_stand_apart_and_stay_near(wanted: list[float]) -> None:
    placed = spread(wanted, 0.05)
    assert all(b - a >= 0.05 - 1e-9 for a, b in pairwise(placed))
    assert all(abs(a - b) <= 0.05 * len(wanted) for a, b in zip(placed, wanted))
    assert spread([0.1, 0.5], 0.05) == [0.1, 0.5]


def test_each_draws_and_says_in_words_what_it_shows() -> None:
    memory = device_memory(preset("qwen3-8b"), Layout(dp=8), context=4096, precision=PRECISIONS["bf16"])
    own = Price("planned", 0.0, 0.2, 0.4, "", "")
    drawings = [
        cost_against_tokens([Line("this card", 1e-7, True), Line("that card", 2e-7)], 1e12, [("known", 2e12, 3e5)]),
        memory_by_part([("one", memory), ("two", memory)], 80e9),
        price_against_hit_rate(own, PRICES, 4000, 1000, 0.5),
    ]
    for drawing, words in zip(drawings, ("this card $100,000", "one: ", "deepseek-r1 $0.714")):
        assert words in drawing.alt and drawing.caption
        FigureCanvasAgg(drawing.draw(LIGHT)).draw()
