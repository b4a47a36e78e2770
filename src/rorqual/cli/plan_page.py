"""The HTML page of `rorqual plan ... out=DIR`, with the plan, plots, and the sources of its inputs."""

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
"""A point in the cost plot: label, training tokens and USD of DeepSeek-V3's pretraining. The technical report counts
2.664M GPU hours at $2 per hour."""


def training_drawings(model: ModelConfig, settings: TrainPlan, plan: Trained, *, is_v3: bool) -> list[Drawing]:
    """Return two plots: cost by number of tokens for each device with a known price, and memory per device for some
    layouts."""
    lines = [
        Line(card.title, _usd_per_token(card, settings, plan), card.name == settings.device().name)
        for card in DEVICES
        if _rent(card, settings)
    ]
    marks = [V3_MARK] if is_v3 and settings.device().name == "h800" else []
    rows: list[tuple[str, Memory]] = [("as asked" if plan.nearest else "this layout", plan.memory)]
    if plan.nearest:
        rows.append(("nearest that fits", plan.nearest[1]))
    base = plan.nearest[0] if plan.nearest else plan.layout
    for name, changed in _variants(base):
        rows.append(
            (name, device_memory(model, changed, context=settings.context, precision=PRECISIONS[settings.precision]))
        )
    rented = [line for line in lines if line.usd_per_token]
    return [cost_against_tokens(rented, settings.tokens, marks), memory_by_part(rows, settings.room().usable)]


def _variants(layout: Layout) -> list[tuple[str, Layout]]:
    """Return named variants of `layout`: with full or no activation checkpointing, and without ZeRO."""
    data = {name: getattr(layout, name) for name in ("dp", "tp", "pp", "ep", "zero", "recompute", "microbatch")}
    variants = (
        [("everything recomputed", Layout(**{**data, "recompute": "full"}))] if layout.recompute != "full" else []
    )
    if layout.recompute != "none":
        variants.append(("nothing recomputed", Layout(**{**data, "recompute": "none"})))
    if layout.zero:
        variants.append(("without ZeRO", Layout(**{**data, "zero": 0})))
    return variants


def _rent(card: Device, settings: TrainPlan) -> float:
    return settings.rent() if card.name == settings.device().name else card.price or 0.0


def _usd_per_token(card: Device, settings: TrainPlan, plan: Trained) -> float:
    used = settings.used() if card.name == settings.device().name else card.utilisation
    return plan.cost.flops_per_token / (card.flops("bf16") * used) / 3600 * _rent(card, settings)


def serving_drawings(settings: ServePlan, plan: Served) -> list[Drawing]:
    """Return a plot of the price by cache hit rate, which also shows the API prices in `PRICES`."""
    return [price_against_hit_rate(plan.price, PRICES, settings.prompt, settings.reply, settings.hit_rate)]


def write_page(
    folder: Path, title: str, rows: Rows, drawings: Sequence[Drawing], settings: TrainPlan | ServePlan
) -> Path:
    """Write a self-contained HTML page to `folder`, and the plots as PNG files next to it. Return the page's path."""
    figures = []
    for drawing in drawings:
        picture = Picture(drawing.name, drawing.alt, drawing.caption, drawing.draw)
        light, dark = (png(picture, theme) for theme in THEMES)
        write_atomic(folder / f"{drawing.name}.png", light)
        figures.append(figure(picture, light, dark))
    card = settings.device()
    peaks = ", ".join(f"{value / 1e12:,.4g} TFLOPS in {name}" for name, value in card.peak.items())
    hardware_text = (
        f"{card.title}: {card.source}. {peaks}; {card.bandwidth / 1e12:.3g} TB/s; {card.memory / 1e9:.4g} GB. "
    )
    hardware_text += f"Rent: {settings.rent_words()}."
    method_text = (
        "FLOPs count a multiply-add as two, in matrix products only. A plan fills up to 92 % of device memory. "
        "Details: docs/how-to/plan.md."
    )
    intro = "This plan is computed from the model's config and from tables with sources. Nothing was run."
    table_rows = [row for row in rows if row[0]]
    body = "\n".join(
        [
            f"<header><h1>{escape(title)}</h1>{para(intro, 'lede')}</header>",
            section("plan", "The plan", table("the plan", ("what", "figure"), [("", table_rows)], text_columns=2)),
            section("pictures", "Plots", *figures),
            section("sources", "Sources", para(hardware_text), para(method_text, "note")),
        ]
    )
    target = folder / PAGE
    write_atomic(target, page(title, body).encode())
    return target
