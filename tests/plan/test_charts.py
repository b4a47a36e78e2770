"""The charts of a plan: their points are its figures, and their words name what they show."""

from __future__ import annotations

import pytest

from rorqual.model.presets import preset
from rorqual.plan.charts import CostLine, cost_chart, memory_chart, price_chart
from rorqual.plan.memory import PRECISIONS, Layout, device_memory
from rorqual.plan.price import PRICES, Price
from rorqual.report.chart import draw


def test_each_draws_and_says_in_words_what_it_shows() -> None:
    memory = device_memory(preset("qwen3-8b"), Layout(dp=8), context=4096, precision=PRECISIONS["bf16"])
    own = Price("planned", 0.0, 0.2, 0.4, "", "")
    lines = [CostLine("this card", 1e-7, True), CostLine("that card", 2e-7), CostLine("a dear card", 2e-6)]
    cost = cost_chart(lines, 1e12, [("known", 2e12, 3e5)])
    size = memory_chart([("one", memory), ("two", memory)], 80e9)
    price = price_chart(own, PRICES, 4000, 1000, 0.5)
    for chart, words in ((cost, "this card $100,000"), (size, "one: "), (price, "deepseek-r1 $0.714")):
        assert words in chart.alt and chart.caption and draw(chart).light
    assert [series.label for series in cost.series] == ["this card", "that card", "", ""]
    assert cost.series[2].points == ((1e12, 1e5),) and cost.series[3].points == ((2e12, 3e5),)
    sizes = [series.points[1][1] * 1e9 for series in size.series[:-1]]
    assert sizes == pytest.approx([value for _, value in memory.named_parts()])
    assert {y for _, y in size.series[-1].points} == {80.0}
    assert (
        price.series[0].points[50] == (1.0, own.blended_price(4000, 1000, 1.0)) and price.series[-1].points[0][0] == 0.5
    )
