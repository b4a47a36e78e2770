"""The output of `rorqual plan`: choose the plan that the arguments request, and format the plan as text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rorqual.cli.inspecting import align_columns, find_model
from rorqual.cli.machine import available_cores
from rorqual.cli.plan_page import serving_charts, training_charts, write_plan
from rorqual.cli.planning import (
    QuickstartPlanSettings,
    RunPlanSettings,
    ServePlanSettings,
    TrainPlanSettings,
    plan_serving,
    plan_training,
    serving_rows,
    training_rows,
)
from rorqual.cli.settings import WHERE, parse_settings
from rorqual.core.errors import ConfigError
from rorqual.core.ledger import CORE_HOUR
from rorqual.core.records import RunDir
from rorqual.model.load.run_directory import read_model_config
from rorqual.plan.hardware import DEVICES
from rorqual.plan.numbers import format_bytes, format_duration, format_short, format_usd
from rorqual.plan.price import PRICES
from rorqual.plan.published import QUOTES, compare_figures
from rorqual.plan.run_speed import read_row_length, speed_of
from rorqual.plan.time import training_flops
from rorqual.recipes.quickstart import SCALES
from rorqual.recipes.quickstart.forecast import forecast

ASK = "rorqual plan deepseek-v3 --train tokens=14.8T hardware=h800 n=2048, or --serve, or rorqual plan --published."
"""Example commands of `rorqual plan`, shown in error messages."""

QUICKSTART = "quickstart"
V3_NAMES = ("deepseek-v3", "deepseek-r1", "deepseek-v3.1")


def plan_text(
    model: str, settings: Sequence[str] | None, *, train: bool, serve: bool, published: bool, tables: bool
) -> str:
    """Return the text of the requested plan. Raises ConfigError unless exactly one plan is requested."""
    requested = [
        name
        for name, wanted in (("train", train), ("serve", serve), ("published", published), ("tables", tables))
        if wanted
    ]
    if len(requested) > 1:
        raise ConfigError(
            f"--{' and --'.join(requested)} are mutually exclusive", where="plan", remedy="Give only one option."
        )
    if "=" in model or ((published or tables) and (model or settings)):
        raise ConfigError(f"'{model}' is not a model", where="plan", remedy=f"Write {ASK}")
    if published:
        return published_figures_text()
    if tables:
        return hardware_and_prices_text()
    if not model:
        raise ConfigError("the model is missing", where="plan", remedy=f"Write {ASK}")
    if train:
        return training_text(model, parse_settings(TrainPlanSettings, settings))
    if serve:
        return serving_text(model, parse_settings(ServePlanSettings, settings))
    if model == QUICKSTART:
        return quickstart_text(parse_settings(QuickstartPlanSettings, settings))
    if RunDir(Path(model)).metrics_file.is_file():
        return run_plan_text(model, parse_settings(RunPlanSettings, settings))
    find_model(model)  # report an unknown model first
    raise ConfigError("the kind of plan is missing", where="plan", remedy=f"Write {ASK}")


def training_text(model: str, settings: TrainPlanSettings) -> str:
    """Return the text of a training plan, and write an HTML page if `out` is set."""
    config = find_model(model)
    plan = plan_training(config, settings)
    rows = [("model", model), *training_rows(config, settings, plan)]
    if not settings.out:
        return align_columns(rows)
    charts = training_charts(config, settings, plan, is_v3=model in V3_NAMES)
    return f"{align_columns(rows)}\n\npage  {write_plan(Path(settings.out), f'{model}: what training costs', rows, charts, settings)}"


def serving_text(model: str, settings: ServePlanSettings) -> str:
    """Return the text of a serving plan, and write an HTML page if `out` is set."""
    config = find_model(model)
    plan = plan_serving(config, settings)
    rows = [("model", model), *serving_rows(config, settings, plan)]
    if not settings.out:
        return align_columns(rows)
    page = write_plan(
        Path(settings.out), f"{model}: what serving costs", rows, serving_charts(settings, plan), settings
    )
    return f"{align_columns(rows)}\n\npage  {page}"


def run_plan_text(name: str, settings: RunPlanSettings) -> str:
    """Return the measured speed of a run, and the time and cost of further training steps."""
    run = RunDir(Path(name))
    speed = speed_of(run)
    core = f", {speed.core_seconds:.3g} core-seconds" if speed.core_seconds else ""
    rows = [
        ("run", name),
        ("measured", f"{speed.done:,} of {speed.asked:,} steps: {format_duration(speed.seconds)} per step{core}, {speed.tokens:,.0f} tokens"),
        ("speed", f"{speed.tokens / speed.seconds:,.0f} tokens/s, {format_short(speed.flops / speed.seconds)}FLOP/s"),
    ]  # fmt: skip
    if settings.steps and settings.tokens:
        raise ConfigError("steps and tokens are mutually exclusive", where=WHERE, remedy="Give steps= or tokens=.")
    steps = settings.steps or round(settings.tokens / speed.tokens)
    label = f"{steps:,} steps, {format_short(steps * speed.tokens)} tokens"
    if not steps:
        steps, label = (
            (speed.asked - speed.done, "remaining steps")
            if speed.done < speed.asked
            else (10 * speed.done, "ten times as long")
        )
    flops_ratio, scaling_note = 1.0, ""
    if settings.model:
        larger_model = find_model(settings.model)
        context = read_row_length(run)
        flops_ratio = training_flops(larger_model, context, mtp=True) / training_flops(
            read_model_config(run), context, mtp=True
        )
        scaling_note = f" of {settings.model}, {flops_ratio:,.3g} times the FLOPs per token, at the same FLOP/s (a larger model reaches more)"
    low, high = (end * flops_ratio for end in speed.seconds_interval(steps))
    rows += [
        (label, f"{format_duration(steps * speed.seconds * flops_ratio)}{scaling_note}"),
        (
            "  95 % interval",
            f"{format_duration(low)} to {format_duration(high)}, on the same machine under the same load",
        ),
    ]
    if speed.core_seconds:
        usd = steps * speed.core_seconds * flops_ratio / 3600 * settings.core_hour
        rows.append(("  money", f"{format_usd(usd)} at ${settings.core_hour:g} per core-hour"))
    return align_columns(rows)


def quickstart_text(settings: QuickstartPlanSettings) -> str:
    """Return the expected time and cost of each quickstart stage on this machine, based on a benchmark of a few seconds."""
    stages = forecast(SCALES[settings.size], seed=settings.seed, threads=settings.threads or available_cores())
    head = ("stage", "seconds", "core-seconds", "tokens", "USD")
    rows = [
        (
            s.name,
            f"{s.seconds:,.1f}",
            f"{s.core_seconds:,.1f}",
            format_short(s.tokens),
            format_usd(s.core_seconds / 3600 * CORE_HOUR),
        )
        for s in stages
    ]
    seconds, core_seconds, tokens = (
        sum(getattr(s, name) for s in stages) for name in ("seconds", "core_seconds", "tokens")
    )
    rows.append(
        (
            "all",
            f"{seconds:,.1f}",
            f"{core_seconds:,.1f}",
            format_short(tokens),
            format_usd(core_seconds / 3600 * CORE_HOUR),
        )
    )
    note = "Excludes Python's start-up and the report. The time of reinforcement depends on reply lengths, which are not known in advance."
    return f"{align_columns([head, *rows], frozenset({1, 2, 3, 4}))}\n\n{note}"


def published_figures_text() -> str:
    """Return a table that compares published figures with computed figures. Each row has the difference, the tolerance and
    the source.

    Notes below the table explain the differences. A list at the end gives the published figures that cannot be computed.
    """
    compared = compare_figures()
    head = ("figure", "published", "ours", "difference", "tolerance", "source")
    rows = [
        (
            f.name,
            f.form.format(f.published),
            f.form.format(f.ours),
            f"{f.difference:+.2%}",
            f"{f.tolerance:.1%}",
            f.source,
        )
        for f in compared
    ]
    whys = [f"{f.name}: {f.why}" for f in compared if f.why]
    quoted = [f"{q.name}, {format_usd(q.usd)} ({q.source}): {q.counts}" for q in QUOTES]
    return "\n\n".join(
        [
            align_columns([head, *rows], frozenset({1, 2, 3, 4})),
            "\n".join(whys),
            "Quoted, not computed:\n" + "\n".join(quoted),
        ]
    )


def hardware_and_prices_text() -> str:
    """Return the tables of hardware and of API prices, with sources."""
    hardware: list[tuple[str, ...]] = [
        ("hardware", "fp32", "bf16", "fp8", "memory", "bandwidth", "link", "USD/h", "sources")
    ]
    for d in DEVICES:
        peaks = [format_short(d.peak[name]) if name in d.peak else "-" for name in ("fp32", "bf16", "fp8")]
        rates = [f"{format_bytes(rate)}/s" for rate in (d.bandwidth, d.link)]
        rent = f"{d.price:.2f}" if d.price else "-"
        hardware.append(
            (d.name, *peaks, format_bytes(d.memory), *rates, rent, f"{d.title}: {d.source}; rent: {d.price_source}")
        )
    prices = [("USD per million tokens", "hit", "miss", "reply", "date", "source")]
    prices += [(p.name, f"{p.hit:g}", f"{p.miss:g}", f"{p.output:g}", p.date, p.source) for p in PRICES]
    return align_columns(hardware, frozenset(range(1, 8))) + "\n\n" + align_columns(prices, frozenset({1, 2, 3}))
