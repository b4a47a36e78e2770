"""The HTML report on a taught model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from rorqual.core.journal import read_lines
from rorqual.core.ledger import UNACCOUNTED, read_ledger
from rorqual.core.progress import clock_text
from rorqual.core.records import write_json
from rorqual.evals.evaluation import Evaluation
from rorqual.evals.table import percent
from rorqual.report.chart import Chart, Series, draw
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
from rorqual.teach.paths import AFTER, ALONE, BEFORE, TeachPaths
from rorqual.teach.plan import TeachPlan
from rorqual.teach.reasons import read_reasons
from rorqual.teach.results import TeachResults, results_json, results_table

SHOWN = 30
"""Number of examples that the HTML page lists for each kind of change."""


def write_report(paths: TeachPaths, config: TeachConfig, dataset: Dataset, plan: TeachPlan, base: str) -> str:
    """Write the HTML page and the JSON file of the results. Return the page's first sentences and the table of results as text."""
    stored = json.loads(paths.baselines.read_bytes())
    alone = [ALONE] if paths.evaluation_file(ALONE).is_file() else []
    found = TeachResults(
        {name: Evaluation.load(paths.evaluation_file(name)) for name in (*stored["names"], *alone, AFTER)}
    )
    opened = list_test_readings(paths.data)
    sentences, table, missing = found.summary_sentences(len(opened)), results_table(found), stored.get("left_out", [])
    pairs = pair_replies(found.evaluations[BEFORE], found.evaluations[AFTER])
    changes = by_change(pairs)
    write_page(
        paths.report,
        "teach",
        file=config.file.rpartition("/")[2],
        sentences=sentences,
        picture=draw(results_chart(found)),
        examples=[transcript(pair) for pair in choose_two_pairs(pairs)],
        results=table,
        left_out=missing,
        failures=failures_table(failure_groups(pairs, dataset.kind), dataset.kind, "before", "after"),
        changes=[
            (
                f"{len(own):,} {change}" + (f", the first {SHOWN}" if len(own) > SHOWN else ""),
                map(transcript, own[:SHOWN]),
            )
            for change in SHOWN_CHANGES
            if (own := changes[change])
        ],
        training=list(training_sentences(paths, plan, base)),
        tables=[*training_tables(paths), *data_tables(paths, dataset)],
        settings=paths.settings.read_text(encoding="utf-8"),
    )
    write_json(paths.results, results_json(found, sentences, len(opened)) | {"left_out": missing})
    return "\n".join([*sentences, table.text(), *(f"left out: {one}" for one in missing)])


def results_chart(found: TeachResults) -> Chart:
    """Chart the accuracy of the taught model and of each baseline, with 95 % intervals."""
    ordered = found.results_by_accuracy[::-1]
    bars = [
        Series(
            label="",
            points=[(place, one.row.accuracy)],
            low=[one.row.interval.low],
            high=[one.row.interval.high],
            texts=[percent(one.row.accuracy)],
            colour="before" if one.ahead else "after",
        )
        for place, one in enumerate(ordered)
    ]
    return Chart(
        name="results",
        kind="bars",
        flip=True,
        percent=True,
        width=4.6,
        labels=[one.name for one in ordered],
        limits=(0, 1.12),
        y="right, in percent of the test examples",
        series=bars,
        alt="; ".join(f"{one.name} {percent(one.row.accuracy)} %" for one in reversed(ordered)),
        caption="The taught model beside all baselines, on test examples that nothing was chosen on. The lines are 95 % intervals.",
    )


def choose_two_pairs(pairs: Sequence[BeforeAfterReplies]) -> list[BeforeAfterReplies]:
    """Return at most two examples: if possible, one that the model learned to solve, and one that the taught model gets wrong."""
    changes = by_change(pairs)
    gained, wrong = changes["gained"], [pair for pair in pairs if pair.change in ("lost", "still wrong")]
    return [*gained[:1], *wrong, *gained[1:]][:2]


def transcript(pair: BeforeAfterReplies) -> list[tuple[str, str, str]]:
    """Return an example with both replies as lines of (name, text, "right", "wrong" or "")."""
    replies = [
        (name, show_reply(sample), "right" if sample.verdict.value == "right" else "wrong")
        for name, sample in (("before", pair.before), ("after", pair.after))
    ]
    return [("example", truncate(pair.after.prompt, 400), ""), ("right answer", pair.after.answer, ""), *replies]


def training_sentences(paths: TeachPaths, plan: TeachPlan, base: str) -> Iterator[str]:
    """Yield sentences on the base model, the teacher's reasons, the training steps, the calculator and the memory."""
    yield f"Base model: {base}."
    if paths.reasons.is_file():
        reasons = read_reasons(paths.reasons)
        told = len(reasons.given)
        yield (
            f"A teacher wrote {len(reasons.texts) - told:,} reasons for answers that it found, and {told:,} for answers that it was told. "
            + reasons.stopped
        )
    early = json.loads(paths.ended_early.read_bytes()) if paths.ended_early.exists() else None
    yield (
        f"{plan.steps:,} steps of {plan.rows} rows of {plan.row} tokens ({plan.epochs:.1f} epochs)"
        + (f", ended early after {early['step']}, because it took too long." if early else ".")
        + f" {json.loads(paths.grpo_result.read_bytes())['text']}."
    )
    if paths.evaluation_file(ALONE).is_file():
        yield (
            "The engine writes the result of each calculation in a reply, for the base model as well (calculator). Other programs that read "
            f"an exported model have no calculator: there it is the row '{ALONE}'."
        )
    peak = json.loads(paths.memory.read_bytes())["peak_bytes"] if paths.memory.exists() else 0
    yield f"Peak memory: {peak / 1e9:.1f} GB."


def training_tables(paths: TeachPaths) -> Iterator[Table]:
    """Yield two tables: the accuracy of each checkpoint on the dev split, and the time of each stage."""
    dev = [
        (
            f"{line['run']}, step {line['step']}",
            f"{line['right']}/{line['total']}",
            percent(line["right"] / line["total"]),
        )
        for line in read_lines(paths.dev)
    ]
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
