"""The three charts of `rorqual plan`: training cost against tokens, memory by part, and serving price against cache hit
rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rorqual.plan.memory import DeviceMemory
from rorqual.plan.numbers import format_bytes, format_short, format_usd
from rorqual.plan.price import Price
from rorqual.report.chart import Chart, Series


@dataclass(frozen=True)
class CostLine:
    """A line of the cost chart: the cost in USD per training token on one kind of hardware. `own` is True for the requested
    hardware."""

    name: str
    usd_per_token: float
    own: bool = False


def cost_chart(lines: Sequence[CostLine], tokens: float, marks: Sequence[tuple[str, float, float]] = ()) -> Chart:
    """Chart training cost around `tokens` tokens, with one line per kind of hardware.

    `marks` holds published training runs as (name, tokens, USD). Hardware that costs ten times as much as the requested
    hardware is left out.
    """
    own = next(line for line in lines if line.own)
    ends = (tokens / 30, tokens * 10)
    shown = [line for line in lines if line.usd_per_token < 10 * own.usd_per_token]
    dots = [("", tokens, own.usd_per_token * tokens, format_usd(own.usd_per_token * tokens), "after")]
    dots += [(name, at, usd, f"{name}: {format_usd(usd)} published", "off") for name, at, usd in marks]
    costs = [line.usd_per_token * end for line in shown for end in ends]
    words = "; ".join(f"{line.name} {format_usd(line.usd_per_token * tokens)}" for line in lines)
    return Chart(
        name="plan-cost",
        title="Training cost",
        x="tokens",
        log="xy",
        ends=True,
        x_ticks=[(at, format_short(at)) for at in _powers_of_ten(*ends)],
        y_ticks=[(at, f"${format_short(at)}") for at in _powers_of_ten(min(costs), max(costs))],
        series=[
            *(
                Series(
                    label=line.name,
                    points=[(end, line.usd_per_token * end) for end in ends],
                    colour="after" if line.own else "before",
                )
                for line in shown
            ),
            *(
                Series(label="", style="points", points=[(at, usd)], texts=[text], colour=colour)
                for _, at, usd, text, colour in dots
            ),
        ],
        alt=f"Training cost grows in proportion to tokens: {words}.",
        caption="Each line uses the table's rent and utilisation. The thick line is the requested hardware; the dot marks "
        f"{format_short(tokens)} tokens on it.",
    )


def _powers_of_ten(low: float, high: float) -> list[float]:
    return [10.0**power for power in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)]


def memory_chart(rows: Sequence[tuple[str, DeviceMemory]], usable: float) -> Chart:
    """Chart the memory per device, divided into parts such as weights. The chart has one bar per layout, and a line at the
    `usable` bytes."""
    names = [name for name, _ in rows[0][1].named_parts()]
    sizes = [[size / 1e9 for _, size in memory.named_parts()] for _, memory in rows]
    words = "; ".join(f"{name}: {format_bytes(memory.total_bytes)}" for name, memory in rows)
    parts = [
        Series(
            label=name,
            points=[(place, own[part]) for place, own in enumerate(sizes)],
            texts=[format_bytes(memory.total_bytes) for _, memory in rows] if part == len(names) - 1 else [],
        )
        for part, name in enumerate(names)
    ]
    limit = Series(
        label=f"{format_bytes(usable)} usable",
        style="dashed",
        colour="ink",
        points=[(-0.5, usable / 1e9), (len(rows) - 0.5, usable / 1e9)],
    )
    return Chart(
        name="plan-memory",
        title="Memory per device",
        kind="bars",
        flip=True,
        stacked=True,
        y="GB",
        height=1.4 + 0.45 * len(rows),
        labels=[name for name, _ in rows],
        series=[*parts, limit],
        alt=f"Memory of the fullest device: {words}, of {format_bytes(usable)} usable.",
        caption=f"The fullest device of each layout. The line marks the {format_bytes(usable)} usable on a device.",
    )


def price_chart(own: Price, others: Sequence[Price], prompt: int, reply: int, hit_rate: float) -> Chart:
    """Chart USD per million tokens against the prompt's cache hit rate, for the plan's price `own` and for API prices
    `others`."""
    rows = (own, *others)
    every = [row.blended_price(prompt, reply, rate) for row in rows for rate in (0.0, 1.0)]
    ticks = [step * power for power in _powers_of_ten(min(every) / 10, max(every)) for step in (1, 2, 5)]
    price = own.blended_price(prompt, reply, hit_rate)
    words = "; ".join(f"{row.name} {format_usd(row.blended_price(prompt, reply, hit_rate))}" for row in rows)
    lines = [
        Series(
            label="this plan" if row is own else f"{row.name}, {row.date}",
            points=[(step / 50, row.blended_price(prompt, reply, step / 50)) for step in range(51)],
            colour="after" if row is own else "before",
        )
        for row in rows
    ]
    return Chart(
        name="plan-price",
        title="Price of a million tokens",
        x="cache hit rate of the prompt",
        log="y",
        ends=True,
        x_ticks=[(step / 5, f"{20 * step}%") for step in range(6)],
        y_ticks=[(at, f"${at:.2g}") for at in ticks if min(every) <= at <= max(every)],
        series=[
            *lines,
            Series(label="", style="points", points=[(hit_rate, price)], texts=[format_usd(price)], colour="after"),
        ],
        alt=f"Price of a million tokens at a hit rate of {hit_rate:.0%}: {words}.",
        caption=f"Requests have {prompt:,} prompt and {reply:,} reply tokens, which count alike. Grey lines are API prices with "
        "their dates. API prices include the cost of the cache's disk; this plan does not.",
    )
