"""The HTML report on a taught model."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator

from rorqual.core.journal import read_lines
from rorqual.core.ledger import UNACCOUNTED, read_ledger
from rorqual.core.progress import clock_text
from rorqual.core.records import write_json
from rorqual.evals.table import percent
from rorqual.report.chart import NARROW, Chart, Series, draw
from rorqual.report.page import write_page
from rorqual.report.table import Table
from rorqual.tasks.examples import list_test_readings
from rorqual.teach.config import TeachConfig
from rorqual.teach.dataset import Dataset
from rorqual.teach.examples import truncate
from rorqual.teach.failures import (
    SHOWN_CHANGES,
    BeforeAfterReplies,
    by_change,
    failure_groups,
    failures_table,
    pair_replies,
    show_reply,
)
from rorqual.teach.paths import TeachPaths
from rorqual.teach.plan import TeachPlan
from rorqual.teach.reasons import read_reasons
from rorqual.teach.results import TeachResults, milliseconds
from rorqual.teach.rungs.language_model import ALONE

FASTEST = 0.01
"""Times of answers below this number of milliseconds are drawn at it."""
SHOWN = 30
"""Number of examples that the HTML page lists for each kind of change."""


def write_report(paths: TeachPaths, config: TeachConfig, dataset: Dataset, found: TeachResults, base: str) -> str:
    """Write the HTML page and the JSON file of the results. Return the page's first sentences and the table of results as text.

    `base` says which base model was trained, or "" if none was.
    """
    opened = list_test_readings(paths.data)
    sentences, table = found.sentences(len(opened)), found.table()
    pairs = pair_replies(found.other, found.chosen)
    changes, names = by_change(pairs), (found.other.model, found.chosen.model)
    gained = changes["gained"]
    skipped = [f"{name} was skipped: {reason}." for name, reason in found.skipped.items()]
    write_page(
        paths.report,
        "teach",
        file=config.file.rpartition("/")[2],
        sentences=sentences,
        picture=draw(results_chart(found)),
        examples=[
            transcript(pair, names)
            for pair in [*gained[:1], *changes["lost"], *changes["still wrong"], *gained[1:]][:2]
        ],
        results=table,
        skipped=skipped,
        suspects=suspects_command(config) if dataset.kind == "label" else "",
        failures=failures_table(failure_groups(pairs, dataset.kind), dataset.kind, *names),
        changes=[
            (
                f"{len(own):,} {change}" + (f", the first {SHOWN}" if len(own) > SHOWN else ""),
                [transcript(pair, names) for pair in own[:SHOWN]],
            )
            for change in SHOWN_CHANGES
            if (own := changes[change])
        ],
        training=list(training_sentences(paths, base)),
        tables=[*found.levels, *training_tables(paths), *data_tables(paths, dataset)],
        settings=paths.settings.read_text(encoding="utf-8"),
    )
    write_json(paths.results, found.to_json(len(opened)))
    return "\n".join([*sentences, table.text(), *skipped])


def results_chart(found: TeachResults) -> Chart:
    """Chart the accuracy of each rung on held-out examples against the time of an answer."""
    ordered = sorted(found.held_out, key=lambda one: -one.accuracy)
    times = [1000 * one.answer_seconds for one in ordered]
    points = [
        Series(
            label=one.name,
            points=[(max(FASTEST, 1000 * one.answer_seconds), one.accuracy)],
            low=[one.interval.low],
            high=[one.interval.high],
            colour="after" if one.name == found.chosen.model else "before",
            hollow=not one.offered,
        )
        for one in ordered
    ]
    return Chart(
        name="results",
        kind="points",
        log="x",
        percent=True,
        width=NARROW,
        height=3.2,
        x="milliseconds an answer",
        x_ticks=[(10.0**power, f"{10.0**power:,g}") for power in range(-2, 6) if 10.0**power <= 10 * max(times)],
        y="right, of held-out examples",
        series=points,
        alt="; ".join(
            f"{one.name} {percent(one.accuracy)} % at {milliseconds(one.answer_seconds)} ms" for one in ordered
        ),
        caption=f"Further up is more often right, further left is faster; {found.chosen.model} is chosen. The lines are 95 % intervals, on "
        "examples held out from training, which are other ones than the test examples."
        + f" Methods that need less than {FASTEST:g} ms are drawn at {FASTEST:g} ms."
        * (min(times) < FASTEST),
    )


def suspects_command(config: TeachConfig) -> str:
    """Return the command that lists rows of the file that are probably mislabelled."""
    given = (f"{name}={value}" for name in ("prompt", "answer", "encoder") if (value := getattr(config, name)))
    return shlex.join(["rorqual", "check", config.file, *given, "suspects=true"])


def transcript(pair: BeforeAfterReplies, names: tuple[str, str]) -> list[tuple[str, str, str]]:
    """Return an example with both replies as lines of (name, text, "right", "wrong" or ""). `names` are those of the two methods."""
    replies = [
        (name, show_reply(sample), "right" if sample.verdict.value == "right" else "wrong")
        for name, sample in zip(names, (pair.before, pair.after), strict=True)
    ]
    return [("example", truncate(pair.after.prompt, 400), ""), ("right answer", pair.after.answer, ""), *replies]


def training_sentences(paths: TeachPaths, base: str) -> Iterator[str]:
    """Yield sentences on the base model, the teacher's reasons, the training steps, the calculator and the memory."""
    if base:
        yield f"Base model: {base}."
    if paths.reasons.is_file():
        reasons = read_reasons(paths.reasons)
        told = len(reasons.given)
        yield (
            f"A teacher wrote {len(reasons.texts) - told:,} reasons for answers that it found, and {told:,} for answers that it was told. "
            + reasons.stopped
        )
    if paths.grpo_result.is_file():
        plan = TeachPlan(**json.loads(paths.plan.read_bytes()))
        early = json.loads(paths.ended_early.read_bytes()) if paths.ended_early.exists() else None
        yield (
            f"{plan.steps:,} steps of {plan.rows} rows of {plan.row} tokens ({plan.epochs:.1f} epochs)"
            + (f", ended early after {early['step']}, because it took too long." if early else ".")
            + f" {json.loads(paths.grpo_result.read_bytes())['text']}."
        )
    if paths.held_out_file(ALONE).is_file():
        yield (
            "The engine writes the result of each calculation in a reply (calculator). Other programs that read an exported model have no "
            f"calculator: there it is the row '{ALONE}'."
        )
    peak = json.loads(paths.memory.read_bytes())["peak_bytes"] if paths.memory.exists() else 0
    yield f"Peak memory: {peak / 1e9:.1f} GB."


def training_tables(paths: TeachPaths) -> Iterator[Table]:
    """Yield two tables: the accuracy of each checkpoint on the dev split, and the time of each stage."""
    dev = [
        (
            f"{line['run']}, step {line['step']}",
            f"{line['bits'].count('1')}/{len(line['bits'])}",
            percent(line["bits"].count("1") / len(line["bits"])),
        )
        for line in read_lines(paths.dev)
    ]
    if dev:
        yield Table(title="Checkpoints", heads=("checkpoint", "right on dev", "%"), rows=dev)
    stages = {UNACCOUNTED: "start and the rest"}
    spent = [
        (stages.get(entry.stage, entry.stage), clock_text(entry.seconds), clock_text(entry.core_seconds))
        for entry in read_ledger(paths.ledger)
    ]
    yield Table(title="Time", heads=("stage", "time", "core time"), rows=spent)


def data_tables(paths: TeachPaths, dataset: Dataset) -> Iterator[Table]:
    """Yield two tables: the sizes of the splits, and when the test split was read."""
    rows = [(str(split), f"{len(examples):,}") for split, examples in dataset.splits.items()]
    rows += [(f"left out: {reason}", f"{count:,}") for reason, count in dataset.left_out.items()]
    if dataset.derived:
        rows.append(("worked solutions derived from the numbers of the prompt", f"{dataset.derived:,}"))
    yield Table(title="Examples", heads=("", "examples"), rows=rows)
    opened = [(one.time, one.command, one.version, one.checkpoint[:12]) for one in list_test_readings(paths.data)]
    heads = ("the test split was opened", "by", "version", "checkpoint")
    yield Table(title="Openings of the test split", heads=heads, rows=opened, text_columns=4)
