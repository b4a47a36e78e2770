"""What `rorqual plan` prints: which plan is asked for, and its text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from rorqual.cli.accounts import find_model, lines
from rorqual.cli.planning import ServePlan, TrainPlan, plan_serving, plan_training, serving_rows, training_rows
from rorqual.cli.settings import read
from rorqual.core.errors import ConfigError
from rorqual.core.records import RunDir
from rorqual.plan.hardware import DEVICES
from rorqual.plan.numbers import gigabytes, money, short
from rorqual.plan.price import PRICES
from rorqual.plan.published import QUOTES, figures

ASK = "rorqual plan deepseek-v3 --train tokens=14.8T hardware=h800 n=2048, or --serve, or rorqual plan --published."


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
        return training_text(model, read(TrainPlan, settings))
    if serve:
        return serving_text(model, read(ServePlan, settings))
    if RunDir(Path(model)).metrics_file.is_file():
        raise ConfigError("runs: not yet", where="plan")
    raise ConfigError("say what to plan", where="plan", remedy=f"Write {ASK}")


def training_text(model: str, asked: TrainPlan) -> str:
    """The plan of a training."""
    config = find_model(model)
    made = plan_training(config, asked)
    return lines([("model", model), *training_rows(config, asked, made)])


def serving_text(model: str, asked: ServePlan) -> str:
    """The plan of serving."""
    config = find_model(model)
    return lines([("model", model), *serving_rows(config, asked, plan_serving(config, asked))])


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
