"""The report of a taught model: what was gained, over which baseline, with what doubt."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from rorqual.core.errors import ConfigError, DataError, nearest
from rorqual.core.ledger import UNACCOUNTED, read_ledger
from rorqual.core.log import clock
from rorqual.core.records import read_lines, write_atomic, write_json
from rorqual.evals import page as html
from rorqual.evals.compare import Comparison, compare
from rorqual.evals.evaluation import Evaluation, Row
from rorqual.evals.pictures import DARK, LIGHT, Picture, Theme, panels, png
from rorqual.evals.table import p_text, percent, percent_interval, render
from rorqual.tasks.examples import AnswerKind, openings, read_facts
from rorqual.teach.config import TeachConfig
from rorqual.teach.dataset import Dataset
from rorqual.teach.failures import Pair, groups, pairs_of, short, shown, wrong_answers
from rorqual.teach.place import AFTER, ALONE, BEFORE, TeachPaths
from rorqual.teach.plan import TeachPlan
from rorqual.teach.reasons import read_reasons

SHOWN = 30
"""Number of failures that the page lists."""


@dataclass(frozen=True)
class Result:
    """A model or baseline on the test split. `ahead` compares the taught model with it (None for the taught model itself)."""

    name: str
    row: Row
    ahead: Comparison | None

    @property
    def is_base(self) -> bool:
        """Whether this is the base model, with or without examples in its prompt."""
        return self.name.startswith("base, ")

    @property
    def title(self) -> str:
        """The name in a sentence."""
        if self.is_base:
            return f"the base model with {self.name.removeprefix('base, ')} in its prompt"
        return "your rule" if self.name == "rule" else self.name

    def ends(self, *, low: bool) -> float:
        """Return an end of the interval of the taught model's gain."""
        assert self.ahead is not None
        interval = self.ahead.difference.interval
        return interval.low if low else interval.high


@dataclass(frozen=True)
class TeachResults:
    """All results on the test split. The taught model comes last."""

    evaluations: Mapping[str, Evaluation]

    @property
    def results(self) -> list[Result]:
        after = self.evaluations[AFTER]
        return [
            Result(name, one.rows("all")[0], None if name == AFTER else compare(one, after, grain="all")[0])
            for name, one in self.evaluations.items()
        ]

    def sentences(self, openings: int) -> list[str]:
        """Return what was gained, over which baseline, and with what doubt."""
        *others, taught = [one for one in self.results if one.name != ALONE]
        base = next(one for one in others if one.name == BEFORE)
        total = taught.row.graded
        helped = max((one for one in others if one.is_base), key=lambda one: one.row.accuracy)
        first = (
            f"The taught model is right on {percent(taught.row.accuracy)} % of {total:,} test examples "
            f"{percent_interval(taught.row.interval)}, and the base model on {percent(base.row.accuracy)} %: {gain(base)}"
        )
        if helped is not base:
            first += f"; with examples in its prompt, the base model reaches {percent(helped.row.accuracy)} %"
            first += f" ({gain(helped)})" if helped is not max(others, key=lambda one: one.row.accuracy) else ""
        first += "."
        classical = max((one for one in others if not one.is_base), key=lambda one: one.row.accuracy)
        best = max(others, key=lambda one: one.row.accuracy)
        if classical.ends(low=True) <= 0:
            behind = "worse than" if classical.ends(low=False) < 0 else "not shown to be better than"
            lead = (
                f"The taught model is {behind} {classical.title}, which is right on {percent(classical.row.accuracy)} % and needs no "
                f"language model (difference {gain(classical)})."
            )
            sentences = [lead, first]
        elif best.name == BEFORE:
            sentences = [first, "No other baseline is better than the base model without examples."]
        elif best.ends(low=True) > 0:
            second = f"The best baseline is {best.title}, with {percent(best.row.accuracy)} %: the taught model gains {gain(best)}."
            sentences = [first, second]
        else:
            second = f"It is not shown to be better than {best.title}: {percent(best.row.accuracy)} %, difference {gain(best)}."
            sentences = [first, second]
        reads = "twice, for the baselines and for the model" if openings == 2 else f"{openings} times instead of twice"
        third = (
            f"The intervals (95 %) show the doubt from {total:,} examples, not from training again with another seed; the test split was "
            f"read {reads}."
        )
        return [*sentences, third]


def gain(result: Result) -> str:
    """Return the taught model's gain over a baseline, in points."""
    assert result.ahead is not None
    ahead = result.ahead
    p = p_text(ahead.p_value)
    return f"{100 * ahead.difference.mean:+.1f} points {percent_interval(ahead.difference.interval)}, p {p if p.startswith('<') else f'= {p}'}"


def write_report(
    paths: TeachPaths, config: TeachConfig, baselines: Sequence[str], dataset: Dataset, plan: TeachPlan, base: str
) -> str:
    """Write the page, and return its first sentences and the table as text."""
    alone = [ALONE] if paths.evaluation(ALONE).is_file() else []
    found = TeachResults({name: Evaluation.load(paths.evaluation(name)) for name in (*baselines, *alone, AFTER)})
    opened = openings(paths.data)
    sentences = found.sentences(len(opened))
    write_atomic(paths.report, _page(paths, config, found, sentences, dataset, plan, base).encode())
    write_json(paths.results, _as_json(found, sentences, len(opened)) | {"left_out": left_out(paths)})
    table = render("on the test split", HEADS, result_rows(found), text_columns=1)
    return "\n".join([*sentences, table, *(f"left out: {one}" for one in left_out(paths))])


def left_out(paths: TeachPaths) -> list[str]:
    """Return the baselines that were left out, with the time that they would take."""
    found: list[str] = json.loads(paths.baselines.read_bytes()).get("left_out", [])
    return found


def load_results(out: Path, than: str = "") -> tuple[AnswerKind, Evaluation, Evaluation]:
    """Return the kind of answers, the results of the baseline `than` (default: the base model), and those of the taught model.

    Raises DataError if the folder has no results, and ConfigError if it has no such baseline.
    """
    paths = TeachPaths(out)
    if not paths.evaluation(AFTER).is_file():
        raise DataError(
            "no results of a taught model",
            where=str(out),
            remedy="Give the folder that `rorqual teach` wrote, or finish that command.",
        )
    after = Evaluation.load(paths.evaluation(AFTER))
    names: list[str] = json.loads(paths.baselines.read_bytes())["names"]
    if than and than not in names:
        raise ConfigError(f"no baseline '{than}'", where="key 'than'", remedy=nearest(than, names))
    return read_facts(paths.data)["kind"], Evaluation.load(paths.evaluation(than or BEFORE)), after


def _as_json(found: TeachResults, sentences: Sequence[str], opened: int) -> dict[str, Any]:
    """Return all results, for other programs. Differences are those of the taught model to each baseline, as shares."""
    rows: list[dict[str, Any]] = []
    for one in found.results:
        row: dict[str, Any] = {
            "name": one.name,
            "right": one.row.right,
            "of": one.row.graded,
            "interval": vars(one.row.interval),
        }
        if not math.isnan(one.row.last):
            row |= {"unmarked": one.row.unmarked, "last": one.row.last}
        if one.ahead is not None:
            row |= {"difference": one.ahead.difference.mean, "difference_interval": vars(one.ahead.difference.interval)}
            row |= {"p": one.ahead.p_value, "gained": one.ahead.gained, "lost": one.ahead.lost}
        rows.append(row)
    return {"sentences": list(sentences), "results": rows, "test_openings": opened}


HEADS = (
    "",
    "right %",
    "95 % interval",
    "unmarked %",
    "last %",
    "taught model, points more",
    "95 % interval",
    "p",
    "gained",
    "lost",
)


def result_rows(found: TeachResults) -> list[tuple[str, ...]]:
    """Return one row for each baseline, best last, and one for the taught model."""
    *others, taught = found.results
    return [_cells(one) for one in (*sorted(others, key=lambda one: one.row.accuracy), taught)]


def _cells(one: Result) -> tuple[str, ...]:
    accuracy = (percent(one.row.accuracy), percent_interval(one.row.interval))
    start = (one.name, *accuracy, percent(one.row.unmarked), percent(one.row.last))
    if one.ahead is None:
        return (*start, "", "", "", "", "")
    ahead = one.ahead
    difference = (f"{100 * ahead.difference.mean:+.1f}", percent_interval(ahead.difference.interval))
    return (*start, *difference, p_text(ahead.p_value), str(ahead.gained), str(ahead.lost))


def _page(
    paths: TeachPaths,
    config: TeachConfig,
    found: TeachResults,
    sentences: Sequence[str],
    dataset: Dataset,
    plan: TeachPlan,
    base: str,
) -> str:
    picture = results_picture(found)
    pairs = pairs_of(found.evaluations[BEFORE], found.evaluations[AFTER])
    body = [
        f"<header><h1>A model taught from {escape(config.file.rpartition('/')[2])}</h1>",
        *(html.para(sentence, "lede") for sentence in sentences),
        html.figure(picture, png(picture, LIGHT), png(picture, DARK)),
        '<div class="two">' + "".join(_talk(pair) for pair in two_examples(pairs)) + "</div>",
        "</header>",
        html.section(
            "results",
            "All baselines",
            html.table("results", HEADS, [("", result_rows(found))]),
            *(html.para(f"Left out: {one}.") for one in left_out(paths)),
        ),
        html.section("failures", "What it gets wrong", *_failures(pairs, dataset)),
        html.section("training", "Training", *_training(paths, plan, base)),
        html.section("data", "Examples", *_data(paths, dataset)),
        html.section("settings", "Settings", html.preformatted(paths.settings.read_text(encoding="utf-8"))),
    ]
    return html.page(f"Rorqual: taught from {config.file.rpartition('/')[2]}", "\n".join(body), STYLE)


STYLE = (
    "div.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(20rem,1fr));gap:0 2rem}"
    "dl.talk{display:grid;grid-template-columns:6.5rem 1fr;gap:.15rem .6rem;border-top:1px solid var(--rule);padding-top:.5rem;"
    "font-size:.95rem;align-content:start}dl.talk dt{margin:0}dl.talk dd{overflow-wrap:anywhere}"
    "dl.talk dd.right{color:var(--good)}dl.talk dd.wrong{color:var(--bad)}"
)


def two_examples(pairs: Sequence[Pair]) -> list[Pair]:
    """Return one example that the model gained, and one that it still gets wrong or lost, if there are such."""
    gained = [pair for pair in pairs if pair.change == "gained"]
    wrong = [pair for pair in pairs if pair.change in ("lost", "still wrong")]
    chosen = [*gained[:1], *wrong[:1]]
    return chosen if len(chosen) == 2 else [*gained[:2], *wrong[:2]][:2]


def _talk(pair: Pair) -> str:
    """Return an example with both replies as HTML."""
    lines = [("example", short(pair.after.prompt, 400), ""), ("right answer", pair.after.answer, "")]
    for name, sample in (("before", pair.before), ("after", pair.after)):
        lines.append((name, shown(sample), "right" if sample.verdict.value == "right" else "wrong"))
    items = "".join(f'<dt>{escape(name)}</dt><dd class="{kind}">{escape(text)}</dd>' for name, text, kind in lines)
    return f'<dl class="talk">{items}</dl>'


def _failures(pairs: Sequence[Pair], dataset: Dataset) -> Iterator[str]:
    group = "field" if dataset.kind == "JSON" else "right answer"
    heads = (group, "most frequent wrong answers", "examples", "before %", "after %", "gained", "lost")
    rows = [
        (
            short(group.name, 60),
            wrong_answers(group),
            str(group.count),
            percent(group.before / group.count),
            percent(group.after / group.count),
            str(group.gained),
            str(group.lost),
        )
        for group in groups(pairs, dataset.kind)
    ]
    yield html.table("failures", heads, [("", rows)], text_columns=2)
    for change in ("lost", "still wrong", "gained"):
        own = [pair for pair in pairs if pair.change == change]
        if own:
            some = f", the first {SHOWN}" if len(own) > SHOWN else ""
            yield html.folded(f"{len(own):,} {change}{some}", "".join(_talk(pair) for pair in own[:SHOWN]))


def _training(paths: TeachPaths, plan: TeachPlan, base: str) -> Iterator[str]:
    early = json.loads(paths.ended_early.read_bytes()) if paths.ended_early.exists() else None
    yield html.para(f"Base model: {base}.")
    if paths.reasons.is_file():
        reasons = read_reasons(paths.reasons)
        told = len(reasons.given)
        yield html.para(
            f"A teacher wrote {len(reasons.texts) - told:,} reasons for answers that it found, and {told:,} for answers that it was told. "
            + reasons.stopped
        )
    yield html.para(
        f"{plan.steps:,} steps of {plan.rows} rows of {plan.row} tokens ({plan.epochs:.1f} epochs)"
        + (f", ended early after {early['step']}, because it took too long." if early else ".")
        + f" {json.loads(paths.grpo.read_bytes())['text']}."
    )
    if paths.evaluation(ALONE).is_file():
        yield html.para(
            "The engine writes the result of each calculation in a reply, for the base model as well (calculator). Other programs that read "
            f"an exported model have no calculator: there it is the row '{ALONE}'."
        )
    dev = [
        (
            f"{line['run']}, step {line['step']}",
            f"{line['right']}/{line['total']}",
            percent(line["right"] / line["total"]),
        )
        for line in read_lines(paths.dev)
    ]
    yield html.table("dev", ("checkpoint", "right on dev", "%"), [("", dev)])
    stages = {UNACCOUNTED: "start and the rest"}
    spent = [
        (stages.get(entry.stage, entry.stage), clock(entry.seconds), clock(entry.core_seconds))
        for entry in read_ledger(paths.ledger)
    ]
    yield html.table("time", ("stage", "time", "core time"), [("", spent)])
    peak = json.loads(paths.memory.read_bytes())["peak_bytes"] if paths.memory.exists() else 0
    yield html.para(f"Peak memory: {peak / 1e9:.1f} GB.")


def _data(paths: TeachPaths, dataset: Dataset) -> Iterator[str]:
    rows = [(str(split), f"{len(examples):,}") for split, examples in dataset.splits.items()]
    rows += [(f"left out: {reason}", f"{count:,}") for reason, count in dataset.left_out.items()]
    if dataset.derived:
        rows.append(("worked solutions derived from the numbers of the prompt", f"{dataset.derived:,}"))
    yield html.table("splits", ("", "examples"), [("", rows)])
    opened = [(one.time, one.command, one.version, one.checkpoint[:12]) for one in openings(paths.data)]
    yield html.table(
        "openings", ("the test split was opened", "by", "version", "checkpoint"), [("", opened)], text_columns=4
    )


def results_picture(found: TeachResults) -> Picture:
    """Plot the accuracy of each baseline and of the taught model, with 95 % intervals."""
    *others, taught = found.results
    ordered = [*sorted(others, key=lambda one: one.row.accuracy), taught]

    def draw(theme: Theme) -> Figure:
        figure, (axis,) = panels(1, 1, 6.6, 0.6 + 0.25 * len(ordered))
        for place, one in enumerate(ordered):
            colour = theme.after if one is taught else theme.before
            value, interval = 100 * one.row.accuracy, one.row.interval
            axis.barh(place, value, height=0.62, color=colour)
            axis.plot([100 * interval.low, 100 * interval.high], [place, place], color=theme.ink, linewidth=1.2)
            axis.annotate(
                f"{value:.1f}",
                (max(value, 100 * interval.high), place),
                xytext=(5, -3),
                textcoords="offset points",
                fontsize=8,
            )
        axis.set_yticks(range(len(ordered)), [one.name for one in ordered])
        axis.set_xlim(0, 108)
        axis.set_xlabel("right, in percent of the test examples")
        axis.grid(axis="y", visible=False)
        return figure

    alt = "; ".join(f"{one.name} {percent(one.row.accuracy)} %" for one in ordered)
    caption = "The taught model beside all baselines, on test examples that nothing was chosen on. The lines are 95 % intervals."
    return Picture("results", alt, caption, draw)
