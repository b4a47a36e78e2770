"""Advice on labels: rows that are probably mislabelled, and the unlabelled rows to label next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rorqual.core.errors import ConfigError, DataError
from rorqual.core.extras import require_extra
from rorqual.core.records import write_atomic
from rorqual.core.rows import DataRow, csv_lines, dialect_like, read_rows
from rorqual.data.source.cells import cell_text, joined_prompt
from rorqual.evals.stats import t_interval
from rorqual.report.table import Table
from rorqual.teach.check import FileCheck
from rorqual.teach.columns import Columns
from rorqual.teach.dataset import usable_examples
from rorqual.teach.encoder import Encoder
from rorqual.teach.examples import Example, truncate
from rorqual.teach.folds import FOLDS, folds, near_duplicate_groups
from rorqual.teach.near_duplicates import find_near_duplicates
from rorqual.teach.rungs.classifiers import FittedClassifier
from rorqual.teach.rungs.features import TfIdf
from rorqual.teach.rungs.rung import TrainingRows

MOST_ROWS = 20_000
"""Maximum number of rows of both files together. The embeddings of so many rows take some minutes."""
DIRECTIONS, PENALTY = 300, 10.0
"""Maximum number of features that are made of TF-IDF, and the inverse strength of the L2 penalty of logistic regression."""
SUSPECT = -0.5
"""Largest margin of a suspect. With few rows for each label, most rows with larger margins have the right label."""
REPEATS, START, HELD_OUT, MORE = 10, 0.5, 0.2, 0.1
"""The gain is measured on `REPEATS` random divisions of the labelled rows. A classifier is fitted on the share `START` of the rows and on
the share `MORE`, which is chosen among the others, and measured on the share `HELD_OUT`."""
SHOWN, WRITTEN = 20, 100
"""Maximum number of rows in a printed table, and of rows to label next."""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class RowAdvice:
    """A row that should be labelled (again). `label` is its label, or "", and `likely` the label that it probably has.

    `margin` is the probability of `label` minus the highest probability of another label. For a row without label, `margin` is
    the probability of `likely` minus the second highest.
    """

    line: int
    prompt: str
    label: str
    likely: str
    margin: float


@dataclass(frozen=True)
class Advice:
    """The advice on a file, as text, as tables and as JSON values."""

    text: str
    tables: Sequence[Table]
    json: Mapping[str, list[dict[str, Any]]]


def advise(
    check: FileCheck, encoder: Encoder | None, *, unlabelled: Path | None = None, write: Path | None = None
) -> Advice:
    """Return the advice on the labels of a checked file. With `unlabelled`, the advice has the rows of this file
    to label next, which are written to the CSV file `write`, and the gain that such a choice has on the labelled rows.

    TF-IDF and the embeddings of `encoder` are compared by cross-validation, and the better ones are used.

    Raises ConfigError if the answers are no labels, and DataError if too few or too many rows can be used.
    """
    if check.kind != "label" or len(check.labels) < 2:
        raise ConfigError(
            "advice on labels needs a file with at least two labels",
            where=f"{check.path}, {check.columns.describe()}",
            remedy="Leave out suspects= and unlabelled=, or name the column of labels: answer=COLUMN.",
        )
    rows, prompts = _read_prompts(unlabelled, check.columns) if unlabelled else ([], [])
    examples, _ = usable_examples(check)
    if len(examples) + len(rows) > MOST_ROWS:
        raise DataError(
            f"more than {MOST_ROWS:,} rows", where=str(check.path), remedy="Give a random sample of the rows."
        )
    tables = _features([*(one.prompt for one in examples), *prompts], encoder)
    right, probability, name = max(
        ((*_cross_validated(examples, one[: len(examples)]), name) for name, one in tables.items()),
        key=lambda one: one[0],
    )
    table, suspects = tables[name], find_suspects(examples, probability)
    found = {"suspects": suspects}
    title = f"probably mislabelled: {len(suspects):,} of {len(examples):,} rows (by {name}, right on {right:.1%})"
    shown = [advice_table(title, suspects)]
    text = shown[0].text()
    if unlabelled:
        following = rows_to_label(examples, rows, prompts, table)
        if write:
            lines = csv_lines(_table_rows(following, rows, check.columns), dialect_like(unlabelled, write))
            write_atomic(write, lines)
        found["next"] = following
        shown.append(advice_table("label these rows next", following))
        text += f"\n\n{shown[1].text()}\n\n{gain_sentence(examples, table[: len(examples)])}"
    return Advice(text, shown, {key: [vars(one) for one in some] for key, some in found.items()})


def _cross_validated(examples: Sequence[Example], table: Floats) -> tuple[float, Floats]:
    """Return the accuracy of a classifier in cross-validation, and its probabilities [examples, classes]. `table` has the features of
    the examples [examples, features]."""
    data = TrainingRows(examples, "label")
    classes, every = data.classes, np.arange(len(examples))
    fold = folds(examples, "label", near_duplicate_groups(examples))
    probability = np.zeros((len(examples), len(data.answers)))
    for number in range(FOLDS):
        model, held = FittedClassifier(table[fold != number], classes[fold != number], PENALTY), every[fold == number]
        probability[np.ix_(held, model.classes)] = model.probabilities(table[held])
    return float((probability.argmax(1) == classes).mean()), probability


def find_suspects(examples: Sequence[Example], probability: Floats) -> list[RowAdvice]:
    """Return the rows whose label is far less probable in cross-validation than another one (the normalized margin of confident
    learning, Northcutt et al. 2021), the least plausible label first.

    Labels with fewer rows than folds are not judged, and margins above `SUSPECT` are no evidence.
    """
    data = TrainingRows(examples, "label")
    classes, every = data.classes, np.arange(len(examples))
    others = probability.copy()
    others[every, classes] = 0.0
    likely, margin = others.argmax(1), probability[every, classes] - others.max(1)
    found = every[(np.bincount(classes)[classes] >= FOLDS) & (margin <= SUSPECT)]
    return [
        RowAdvice(one.line, one.prompt, one.answer, data.answers[likely[place]], float(margin[place]))
        for place in found[np.argsort(margin[found], kind="stable")]
        for one in (examples[place],)
    ]


def rows_to_label(
    examples: Sequence[Example], rows: Sequence[DataRow], prompts: Sequence[str], table: Floats
) -> list[RowAdvice]:
    """Return the unlabelled rows to label next, the smallest margin first. Near-duplicates of labelled rows, and all but one of
    near-duplicates of each other, are left out. `table` has the features of the examples, then of the rows."""
    data, count = TrainingRows(examples, "label"), len(examples)
    model = FittedClassifier(table[:count], data.classes, PENALTY)
    probability = model.probabilities(table[count:])
    likely, margin = model.classes[probability.argmax(1)], _margins(probability)
    groups = find_near_duplicates([*data.prompts, *prompts]).groups
    seen, found = {*groups[:count]}, []
    for place in np.argsort(margin, kind="stable").tolist():
        if groups[count + place] not in seen:
            seen.add(groups[count + place])
            found.append(
                RowAdvice(rows[place].line, prompts[place], "", data.answers[likely[place]], float(margin[place]))
            )
    return found[:WRITTEN]


def gain_sentence(examples: Sequence[Example], table: Floats) -> str:
    """Measure on labelled rows what it gains to choose rows by their margin, and return a sentence with accuracies and interval."""
    classes, count = TrainingRows(examples, "label").classes, len(examples)
    more, ends, right = round(MORE * count), [round(START * count), round((1 - HELD_OUT) * count)], []
    for seed in range(REPEATS):
        start, pool, held = np.split(np.random.default_rng(seed).permutation(count), ends)
        model = FittedClassifier(table[start], classes[start], PENALTY)
        chosen = pool[np.argsort(_margins(model.probabilities(table[pool])), kind="stable")[:more]]
        for added in (pool[:0], pool[:more], chosen):
            known = np.concatenate([start, added])
            model = FittedClassifier(table[known], classes[known], PENALTY)
            guesses = model.classes[model.probabilities(table[held]).argmax(1)]
            right.append(float((guesses == classes[held]).mean()))
    before, drawn, by_margin = np.reshape(right, (REPEATS, 3)).T
    gain = t_interval(100 * (by_margin - drawn))
    return (
        f"Measured on your labelled rows: {more:,} more rows raise the accuracy from {before.mean():.1%} to {by_margin.mean():.1%} if they are "
        f"chosen in this way, and to {drawn.mean():.1%} if they are drawn at random: {100 * (by_margin - drawn).mean():+.1f} points "
        f"[{gain.low:.1f}, {gain.high:.1f}] (95 %, {REPEATS} random divisions)."
        + " The choice is not shown to help."
        * (gain.low <= 0)
    )


def _features(prompts: Sequence[str], encoder: Encoder | None) -> dict[str, Floats]:
    """Return features [prompts, features] by name: the leading singular directions of TF-IDF, and with an encoder, embeddings."""
    with require_extra("teach", "sklearn"):
        from sklearn.decomposition import TruncatedSVD
    tf_idf = TfIdf(words=True)
    tf_idf.fit(prompts)
    table = tf_idf.of(prompts)
    found = {"TF-IDF": TruncatedSVD(min(DIRECTIONS, *table.shape), random_state=0).fit_transform(table)}
    return found if encoder is None else found | {"embeddings": encoder.embed(prompts).astype(np.float64)}


def _margins(probability: Floats) -> Floats:
    """Return the difference of the two highest probabilities of each row [rows], or 0 for a single class."""
    return np.diff(np.sort(probability, axis=1)[:, -2:], axis=1).sum(1)


def advice_table(title: str, advice: Sequence[RowAdvice]) -> Table:
    """Return a table of the first rows."""
    rows = [
        (str(one.line), one.label, one.likely, f"{one.margin:.2f}", truncate(" ".join(one.prompt.split()), 80))
        for one in advice
    ]
    heads = ("line", "label", "likely", "margin", "prompt")
    return Table(title=title, heads=heads, rows=rows[:SHOWN], text_columns=5)


def _table_rows(advice: Sequence[RowAdvice], rows: Sequence[DataRow], columns: Columns) -> Iterator[list[str]]:
    """Yield the columns of the prompt, an empty column for the label, and the likely label."""
    values = {row.line: row.values for row in rows}
    yield [*columns.prompt, *columns.answer, "likely"]
    for one in advice:
        yield [*(cell_text(values[one.line], name, optional=True) for name in columns.prompt), "", one.likely]


def _read_prompts(path: Path, columns: Columns) -> tuple[list[DataRow], list[str]]:
    if columns.messages:
        raise ConfigError(
            "unlabelled= cannot read conversations", where=str(path), remedy="Name a column: prompt=COLUMN."
        )
    rows, prompts = list(read_rows(path)), []
    for row in rows:
        try:
            prompts.append(joined_prompt(row.values, columns.prompt))
        except DataError as error:
            raise DataError(error.what, where=row.where, remedy="Fix or remove the row.") from None
    return rows, prompts
