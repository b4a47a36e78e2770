"""The HTML page of `rorqual plan ... out=DIR`, with the plan, plots, and the sources of the plan's inputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rorqual.cli.planning import PlannedServing, PlannedTraining, Rows, ServePlanSettings, TrainPlanSettings
from rorqual.core.records import write_atomic
from rorqual.model.config import ModelConfig
from rorqual.plan.charts import CostLine, cost_chart, memory_chart, price_chart
from rorqual.plan.hardware import DEVICES, Device
from rorqual.plan.memory import PRECISIONS, DeviceMemory, Layout, device_memory
from rorqual.plan.price import PRICES
from rorqual.report.chart import Chart, draw
from rorqual.report.page import write_page
from rorqual.report.table import Table

PAGE = "plan.html"
V3_MARK = ("DeepSeek-V3", 14.8e12, 2.664e6 * 2.0)
"""A point in the cost plot: label, training tokens and USD of DeepSeek-V3's pretraining. DeepSeek-V3's technical report
counts 2.664M GPU hours at $2 per hour."""


def training_charts(
    model: ModelConfig, settings: TrainPlanSettings, plan: PlannedTraining, *, is_v3: bool
) -> list[Chart]:
    """Return two charts. The first has the cost by number of training tokens, with one line per device type with a known
    price. The second has the memory per device, with one bar per layout."""
    lines = [
        CostLine(card.title, _usd_per_token(card, settings, plan), card.name == settings.device().name)
        for card in DEVICES
        if _usd_per_device_hour(card, settings)
    ]
    marks = [V3_MARK] if is_v3 and settings.device().name == "h800" else []
    rows: list[tuple[str, DeviceMemory]] = [("as asked" if plan.chosen else "this layout", plan.memory)]
    if plan.chosen:
        rows.append(("layout that fits", plan.chosen[1]))
    base = plan.chosen[0] if plan.chosen else plan.layout
    for name, changed in _variants(base):
        rows.append(
            (name, device_memory(model, changed, context=settings.context, precision=PRECISIONS[settings.precision]))
        )
    rented = [line for line in lines if line.usd_per_token]
    return [cost_chart(rented, settings.tokens, marks), memory_chart(rows, settings.layout_limits().usable)]


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


def _usd_per_device_hour(card: Device, settings: TrainPlanSettings) -> float:
    return settings.usd_per_device_hour() if card.name == settings.device().name else card.price or 0.0


def _usd_per_token(card: Device, settings: TrainPlanSettings, plan: PlannedTraining) -> float:
    used = settings.peak_share() if card.name == settings.device().name else card.utilisation
    return plan.cost.flops_per_token / (card.flops("bf16") * used) / 3600 * _usd_per_device_hour(card, settings)


def serving_charts(settings: ServePlanSettings, plan: PlannedServing) -> list[Chart]:
    """Return a list with one chart: the price per million tokens by cache hit rate, for this plan and for the API prices in `PRICES`."""
    return [price_chart(plan.price, PRICES, settings.prompt, settings.reply, settings.hit_rate)]


def write_plan(
    folder: Path, title: str, rows: Rows, charts: Sequence[Chart], settings: TrainPlanSettings | ServePlanSettings
) -> Path:
    """Write a self-contained HTML page to `folder`, and the charts as PNG files next to the page. Return the page's path."""
    pictures = [draw(chart) for chart in charts]
    for picture in pictures:
        write_atomic(folder / f"{picture.name}.png", picture.light)
    card = settings.device()
    peaks = ", ".join(f"{value / 1e12:,.4g} TFLOPS in {name}" for name, value in card.peak.items())
    hardware = f"{card.title}: {card.source}. {peaks}; {card.bandwidth / 1e12:.3g} TB/s; {card.memory / 1e9:.4g} GB. "
    table = Table(title="the plan", heads=("what", "figure"), rows=[row for row in rows if row[0]], text_columns=2)
    return write_page(
        folder / PAGE,
        "plan",
        title=title,
        plan=table,
        pictures=pictures,
        hardware=f"{hardware}Rent: {settings.price_text()}.",
    )
