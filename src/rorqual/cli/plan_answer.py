"""What `rorqual plan` prints: which plan is asked for, and its text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from rorqual.cli.accounts import find_model, lines
from rorqual.cli.machine import cores
from rorqual.cli.plan_page import serving_drawings, training_drawings, write_page
from rorqual.cli.planning import (
    QuickstartPlan,
    RunPlan,
    ServePlan,
    TrainPlan,
    plan_serving,
    plan_training,
    serving_rows,
    training_rows,
)
from rorqual.cli.settings import WHERE, read
from rorqual.core.errors import ConfigError
from rorqual.core.ledger import CORE_HOUR
from rorqual.core.records import RunDir
from rorqual.model.load.run import read_model_config
from rorqual.plan.hardware import DEVICES
from rorqual.plan.numbers import duration, gigabytes, money, short
from rorqual.plan.price import PRICES
from rorqual.plan.published import QUOTES, figures
from rorqual.plan.run import read_row, speed_of
from rorqual.plan.time import training_flops
from rorqual.recipes.quickstart import SCALES
from rorqual.recipes.quickstart.forecast import forecast

ASK = "rorqual plan deepseek-v3 --train tokens=14.8T hardware=h800 n=2048, or --serve, or rorqual plan --published."

QUICKSTART = "quickstart"
V3_NAMES = ("deepseek-v3", "deepseek-r1", "deepseek-v3.1")


def answer(
    model: str, settings: Sequence[str] | None, *, train: bool, serve: bool, published: bool, tables: bool
) -> str:
    """The text of what was asked; a ConfigError where nothing or two things were."""
    asked = [
        name
        for name, wanted in (("train", train), ("serve", serve), ("published", published), ("tables", tables))
        if wanted
    ]
    if len(asked) > 1:
        raise ConfigError(f"--{' and --'.join(asked)}", where="plan", remedy="Ask for one at a time.")
    if "=" in model or ((published or tables) and (model or settings)):
        raise ConfigError(f"'{model}' is no model", where="plan", remedy=f"Write {ASK}")
    if published:
        return published_text()
    if tables:
        return tables_text()
    if not model:
        raise ConfigError("no model is named", where="plan", remedy=f"Write {ASK}")
    if train:
        if not any(word.startswith("tokens=") for word in settings or ()):
            raise ConfigError(
                "key 'tokens' is required: how many to train on",
                where=WHERE,
                remedy="Say how many, such as tokens=14.8T.",
            )
        return training_text(model, read(TrainPlan, settings))
    if serve:
        return serving_text(model, read(ServePlan, settings))
    if model == QUICKSTART:
        return quickstart_text(read(QuickstartPlan, settings))
    if RunDir(Path(model)).metrics_file.is_file():
        return run_text(model, read(RunPlan, settings))
    find_model(model)  # what is not known is said first
    raise ConfigError("say what to plan", where="plan", remedy=f"Write {ASK}")


def training_text(model: str, asked: TrainPlan) -> str:
    """The plan of a training, and its page where one is wanted."""
    config = find_model(model)
    made = plan_training(config, asked)
    rows = [("model", model), *training_rows(config, asked, made)]
    if not asked.out:
        return lines(rows)
    drawings = training_drawings(config, asked, made, is_v3=model in V3_NAMES)
    return (
        f"{lines(rows)}\n\npage  {write_page(Path(asked.out), f'{model}: what training costs', rows, drawings, asked)}"
    )


def serving_text(model: str, asked: ServePlan) -> str:
    """The plan of serving, and its page where one is wanted."""
    config = find_model(model)
    made = plan_serving(config, asked)
    rows = [("model", model), *serving_rows(config, asked, made)]
    if not asked.out:
        return lines(rows)
    page = write_page(Path(asked.out), f"{model}: what serving costs", rows, serving_drawings(asked, made), asked)
    return f"{lines(rows)}\n\npage  {page}"


def run_text(name: str, asked: RunPlan) -> str:
    """How fast a run was here, and what more of it takes."""
    run = RunDir(Path(name))
    speed = speed_of(run)
    core = f", {speed.core_seconds:.3g} core-seconds" if speed.core_seconds else ""
    rows = [
        ("run", name),
        ("measured", f"{speed.done:,} of {speed.asked:,} steps: {duration(speed.seconds)} a step{core}, {speed.tokens:,.0f} tokens"),
        ("speed", f"{speed.tokens / speed.seconds:,.0f} tokens and {short(speed.flops / speed.seconds)}FLOPs a second"),
    ]  # fmt: skip
    if asked.steps and asked.tokens:
        raise ConfigError("steps and tokens are both given", where=WHERE, remedy="Give one of them.")
    steps = asked.steps or round(asked.tokens / speed.tokens)
    label = f"{steps:,} steps, {short(steps * speed.tokens)} tokens"
    if not steps:
        steps, label = (
            (speed.asked - speed.done, "what is left of it")
            if speed.done < speed.asked
            else (10 * speed.done, "ten times as long")
        )
    times, like = 1.0, ""
    if asked.model:
        grown = find_model(asked.model)
        context = read_row(run)
        times = training_flops(grown, context, mtp=True) / training_flops(read_model_config(run), context, mtp=True)
        like = f" of {asked.model}, {times:,.3g} times the FLOPs a token, at the same FLOPs a second (a larger model reaches more)"
    low, high = (end * times for end in speed.interval(steps))
    rows += [
        (label, f"{duration(steps * speed.seconds * times)}{like}"),
        ("  95 % interval", f"{duration(low)} to {duration(high)}, if the machine stays as it was"),
    ]
    if speed.core_seconds:
        usd = steps * speed.core_seconds * times / 3600 * asked.core_hour
        rows.append(("  money", f"{money(usd)} at ${asked.core_hour:g} a core-hour"))
    return lines(rows)


def quickstart_text(asked: QuickstartPlan) -> str:
    """What each stage of a quickstart would take here, by a probe of some seconds."""
    found = forecast(SCALES[asked.size], seed=asked.seed, threads=asked.threads or cores())
    head = ("stage", "seconds", "core-seconds", "tokens", "USD")
    rows = [
        (
            s.name,
            f"{s.seconds:,.1f}",
            f"{s.core_seconds:,.1f}",
            short(s.tokens),
            money(s.core_seconds / 3600 * CORE_HOUR),
        )
        for s in found
    ]
    seconds, core, tokens = (sum(getattr(s, name) for s in found) for name in ("seconds", "core_seconds", "tokens"))
    rows.append(("all", f"{seconds:,.1f}", f"{core:,.1f}", short(tokens), money(core / 3600 * CORE_HOUR)))
    note = "Without the start of Python and the report. Reinforcement depends on how long answers become, which nobody knows before."
    return f"{columns([head, *rows], frozenset({1, 2, 3, 4}))}\n\n{note}"


def columns(rows: Iterable[Sequence[str]], right: frozenset[int] = frozenset()) -> str:
    """Text in columns, those in `right` aligned to the right; the last one runs free."""
    table = [tuple(row) for row in rows]
    widths = [max(len(row[place]) for row in table) for place in range(len(table[0]))]
    made = []
    for row in table:
        cells = [
            cell.rjust(width) if place in right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths))
        ]
        made.append("  ".join(cells).rstrip())
    return "\n".join(made)


def published_text() -> str:
    """Each published figure, ours, the difference and where it stands; below, why one does not follow, and what is only quoted."""
    found = figures()
    head = ("what", "published", "ours", "difference", "held to", "source")
    rows = [
        (
            f.name,
            f.form.format(f.published),
            f.form.format(f.ours),
            f"{f.difference:+.2%}",
            f"{f.tolerance:.1%}",
            f.source,
        )
        for f in found
    ]
    whys = [f"{f.name}: {f.why}" for f in found if f.why]
    quoted = [f"{q.name}, {money(q.usd)} ({q.source}): {q.counts}" for q in QUOTES]
    return "\n\n".join(
        [
            columns([head, *rows], frozenset({1, 2, 3, 4})),
            "\n".join(whys),
            "Quoted, not computed:\n" + "\n".join(quoted),
        ]
    )


def tables_text() -> str:
    """Hardware and prices, each row with its sources."""
    cards: list[tuple[str, ...]] = [
        ("hardware", "fp32", "bf16", "fp8", "memory", "bandwidth", "link", "USD/h", "sources")
    ]
    for d in DEVICES:
        peaks = [short(d.peak[name]) if name in d.peak else "-" for name in ("fp32", "bf16", "fp8")]
        rates = [f"{gigabytes(rate)}/s" for rate in (d.bandwidth, d.link)]
        rent = f"{d.price:.2f}" if d.price else "-"
        cards.append(
            (d.name, *peaks, gigabytes(d.memory), *rates, rent, f"{d.title}: {d.source}; rent: {d.price_source}")
        )
    prices = [("USD a million tokens", "hit", "miss", "reply", "date", "source")]
    prices += [(p.name, f"{p.hit:g}", f"{p.miss:g}", f"{p.output:g}", p.date, p.source) for p in PRICES]
    return columns(cards, frozenset(range(1, 8))) + "\n\n" + columns(prices, frozenset({1, 2, 3}))
