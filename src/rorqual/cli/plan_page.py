"""The HTML page that `rorqual plan ... out=DIR` writes: the plan, its plots, and the sources of its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from rorqual.cli.planning import Rows, Served, ServePlan, Trained, TrainPlan
from rorqual.core.records import write_atomic
from rorqual.evals.page import figure, page, para, section, table
from rorqual.evals.pictures import THEMES, Picture, png
from rorqual.model.config import ModelConfig
from rorqual.plan.hardware import DEVICES, Device
from rorqual.plan.memory import PRECISIONS, Layout, Memory, device_memory
from rorqual.plan.pictures import Drawing, Line, cost_against_tokens, memory_by_part, price_against_hit_rate
from rorqual.plan.price import PRICES

PAGE = "plan.html"
V3_MARK = ("DeepSeek-V3", 14.8e12, 2.664e6 * 2.0)
"""Label, tokens and USD of DeepSeek-V3's pretraining: the report's GPU hours at the report's $2 per hour."""


def training_drawings(model: ModelConfig, asked: TrainPlan, made: Trained, *, is_v3: bool) -> list[Drawing]:
    """Return two plots: cost against tokens for each device with a rent, and memory per device of several layouts."""
    lines = [
        Line(card.title, _usd_per_token(card, asked, made), card.name == asked.device().name)
        for card in DEVICES
        if _rent(card, asked)
    ]
    marks = [V3_MARK] if is_v3 and asked.device().name == "h800" else []
    rows: list[tuple[str, Memory]] = [("as asked" if made.nearest else "this layout", made.memory)]
    if made.nearest:
        rows.append(("nearest that fits", made.nearest[1]))
    base = made.nearest[0] if made.nearest else made.layout
    for name, changed in _changes(base):
        rows.append((name, device_memory(model, changed, context=asked.context, precision=PRECISIONS[asked.precision])))
    rented = [line for line in lines if line.usd_per_token]
    return [cost_against_tokens(rented, asked.tokens, marks), memory_by_part(rows, asked.room().usable)]


def _changes(layout: Layout) -> list[tuple[str, Layout]]:
    """Return variants of `layout` with other activation-checkpointing settings, and one without ZeRO."""
    data = {name: getattr(layout, name) for name in ("dp", "tp", "pp", "ep", "zero", "recompute", "microbatch")}
    found = [("everything recomputed", Layout(**{**data, "recompute": "full"}))] if layout.recompute != "full" else []
    if layout.recompute != "none":
        found.append(("nothing recomputed", Layout(**{**data, "recompute": "none"})))
    if layout.zero:
        found.append(("without ZeRO", Layout(**{**data, "zero": 0})))
    return found


def _rent(card: Device, asked: TrainPlan) -> float:
    return asked.rent() if card.name == asked.device().name else card.price or 0.0


def _usd_per_token(card: Device, asked: TrainPlan, made: Trained) -> float:
    used = asked.used() if card.name == asked.device().name else card.utilisation
    return made.cost.flops_per_token / (card.flops("bf16") * used) / 3600 * _rent(card, asked)


def serving_drawings(asked: ServePlan, made: Served) -> list[Drawing]:
    """Return a plot of the price against the cache hit rate, with the API prices of the table."""
    return [price_against_hit_rate(made.price, PRICES, asked.prompt, asked.reply, asked.hit_rate)]


def write_page(folder: Path, title: str, rows: Rows, drawings: Sequence[Drawing], asked: TrainPlan | ServePlan) -> Path:
    """Write a self-contained page, and its plots as PNG files in the same folder. Return the page's path."""
    figures = []
    for drawing in drawings:
        picture = Picture(drawing.name, drawing.alt, drawing.caption, drawing.draw)
        light, dark = (png(picture, theme) for theme in THEMES)
        write_atomic(folder / f"{drawing.name}.png", light)
        figures.append(figure(picture, light, dark))
    card = asked.device()
    peaks = ", ".join(f"{value / 1e12:,.4g} TFLOPS in {name}" for name, value in card.peak.items())
    given = f"{card.title}: {card.source}. {peaks}; {card.bandwidth / 1e12:.3g} TB/s; {card.memory / 1e9:.4g} GB. Rent: {asked.rent_words()}."
    counted = "FLOPs count a multiply-add as two, in matrix products only. A plan fills up to 92 % of device memory. See docs/how-to/plan.md."
    lede = "This plan is computed from the model's config and from tables with sources. Nothing was run."
    shown = [row for row in rows if row[0]]
    body = "\n".join(
        [
            f"<header><h1>{escape(title)}</h1>{para(lede, 'lede')}</header>",
            section("plan", "The plan", table("the plan", ("what", "figure"), [("", shown)], text_columns=2)),
            section("pictures", "Plots", *figures),
            section("sources", "Sources", para(given), para(counted, "note")),
        ]
    )
    target = folder / PAGE
    write_atomic(target, page(title, body).encode())
    return target
