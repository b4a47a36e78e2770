"""The page that `rorqual plan ... out=DIR` writes: the plan's figures, its pictures, and where its inputs come from."""

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
"""Pretraining alone, its hours at the report's rent."""


def training_drawings(model: ModelConfig, asked: TrainPlan, made: Trained, *, is_v3: bool) -> list[Drawing]:
    """Cost against tokens on each hardware that has a rent, and memory of the layout beside others."""
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
    """What the same layout is without each of its savings."""
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
    """The price against the hit rate, among the API prices of the table."""
    return [price_against_hit_rate(made.price, PRICES, asked.prompt, asked.reply, asked.hit_rate)]


def write_page(folder: Path, title: str, rows: Rows, drawings: Sequence[Drawing], asked: TrainPlan | ServePlan) -> Path:
    """One file that needs no network, and its pictures beside it; returns the page's path."""
    figures = []
    for drawing in drawings:
        picture = Picture(drawing.name, drawing.alt, drawing.caption, drawing.draw)
        light, dark = (png(picture, theme) for theme in THEMES)
        write_atomic(folder / f"{drawing.name}.png", light)
        figures.append(figure(picture, light, dark))
    card = asked.device()
    peaks = ", ".join(f"{value / 1e12:,.4g} TFLOPS in {name}" for name, value in card.peak.items())
    given = f"{card.title}: {card.source}. {peaks}; {card.bandwidth / 1e12:.3g} TB/s; {card.memory / 1e9:.4g} GB. Rent: {asked.rent_words()}."
    counted = "FLOPs: a multiply-add counts as two, matrix products only. A device's memory is planned to 92 %. The rest is in docs/plan.md."
    lede = "A plan: arithmetic on the model's account and on tables with sources. Nothing was run."
    shown = [row for row in rows if row[0]]
    body = "\n".join(
        [
            f"<header><h1>{escape(title)}</h1>{para(lede, 'lede')}</header>",
            section("plan", "The plan", table("the plan", ("what", "figure"), [("", shown)], text_columns=2)),
            section("pictures", "In pictures", *figures),
            section("sources", "Where the inputs come from", para(given), para(counted, "note")),
        ]
    )
    target = folder / PAGE
    write_atomic(target, page(title, body).encode())
    return target
