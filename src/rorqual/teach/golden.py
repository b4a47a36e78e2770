"""Compare a model with the kept ("golden") answers of another model to the same prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from rorqual.core.errors import DataError
from rorqual.core.rows import DataRow, read_rows
from rorqual.data.source.cells import cell_text
from rorqual.engine.request import Completion, Request
from rorqual.evals.evaluation import Evaluation
from rorqual.evals.stats import difference_over_seeds
from rorqual.evals.table import percent, percent_interval
from rorqual.report.table import Table
from rorqual.tasks.examples import AnswerKind, canonical_form
from rorqual.tasks.messages import Messages
from rorqual.tasks.numbers import read_unitless_number
from rorqual.tasks.task import Problem, Split, Verdict
from rorqual.teach.answer_file import ROWS_AT_ONCE
from rorqual.teach.answerer import Answerer
from rorqual.teach.contract import abstention, prompt_of_conversation
from rorqual.teach.examples import Example, answer_kind, is_json, truncate

SHOWN, WIDTH = 10, 60
"""Maximum number of different answers that are shown, and of characters of each."""


class GoldenAnswers(Messages):
    """Conversations whose last turn is the golden answer, the old model's. `expected` in a row is the right answer, if it is known.

    If the file has few different answers (`answer_kind`), they are labels, and the family of a problem is its label. Otherwise, the
    family is the form of its golden answer: JSON, number or text. Answers are compared by `canonical_form`.
    """

    name = "golden"

    def load(self, split: Split) -> list[Problem]:
        rows = [(row, self._problem(row)) for row in read_rows(self.data)]
        kind = answer_kind([Example(row.line, problem.prompt, problem.answer) for row, problem in rows])
        return [self._golden_problem(row, problem, kind == "label") for row, problem in rows]

    def _golden_problem(self, row: DataRow, problem: Problem, is_label: bool) -> Problem:
        golden = problem.answer
        if not golden:
            what, remedy = (
                "key 'messages': the golden answer is empty",
                "Write the answer, or delete the row. Calls of tools are not compared.",
            )
            raise DataError(what, where=row.where, remedy=remedy)
        is_number = read_unitless_number(golden) is not None
        form: AnswerKind = "JSON" if is_json(golden) else "number" if is_number else "text"
        kind: AnswerKind = "label" if is_label else form
        family = canonical_form(golden, kind) if is_label else form
        known = {"kind": kind, "expected": cell_text(row.values, "expected", optional=True)}
        return replace(problem, key=f"line {row.line}", family=family or form, meta=problem.meta | known)

    def canonical_answer(self, problem: Problem, reply: str) -> str | None:
        return canonical_form(reply, problem.meta["kind"], gold=problem.answer)


class AnswererGenerator:
    """What `rorqual teach` chose, as a generator of completions. If it does not answer a prompt, the completion has an error."""

    def __init__(self, answerer: Answerer) -> None:
        self.answerer = answerer

    def generate(self, requests: Sequence[Request], *, arrived: Callable[[int, int, Completion], None]) -> None:
        """Answer the requests, and call `arrived` with the index of each request, 0 and the completion."""
        prompts, config = dict[int, str](), self.answerer.config
        for place, request in enumerate(requests):
            try:
                prompts[place] = prompt_of_conversation(request.messages, config)
            except DataError as fault:
                arrived(place, 0, Completion((), [], [], "stop", "", None, error=str(fault)))
        places = list(prompts)
        for some in (places[start : start + ROWS_AT_ONCE] for start in range(0, len(places), ROWS_AT_ONCE)):
            for place, one in zip(some, self.answerer.answer([prompts[place] for place in some]), strict=True):
                reasoning, error = one.reasoning or None, abstention(one, config)
                arrived(place, 0, Completion((), [], [], "stop", one.text, reasoning, error=error))


def agreement_table(evaluation: Evaluation, confidence: float) -> Table:
    """Return the share of the golden answers among the answers that the model gave, for each kind of row and for all rows."""
    rows = [*evaluation.rows("family", confidence), *evaluation.rows("all", confidence)]
    return Table(
        title=f"{evaluation.model}: answers that are the same as the golden ones",
        heads=["golden answer", "same", "agreement %", f"{100 * confidence:g} % interval", "unanswered"],
        rows=[
            [
                truncate(row.family, WIDTH),
                f"{row.right}/{row.graded}",
                percent(row.accuracy),
                percent_interval(row.interval),
                str(row.ungraded),
            ]
            for row in rows
        ],
    )


def differences_table(evaluation: Evaluation, problems: Sequence[Problem]) -> Table:
    """Return the first rows in which the answers differ, with the right answer, if one is known."""
    differ = [
        (one.key, problem.prompt, one.answer, one.reply, problem.meta["expected"])
        for problem, one in zip(problems, evaluation.samples, strict=True)
        if one.verdict is Verdict.WRONG
    ]
    columns = 5 if any(row[-1] for row in differ) else 4
    rows = [[truncate(" ".join(text.split()), WIDTH) for text in row[:columns]] for row in differ]
    title = f"the first {min(SHOWN, len(rows))} of {len(rows):,} answers that differ"
    heads = ["row", "prompt", "golden answer", "answer", "expected"][:columns]
    return Table(title=title, heads=heads, rows=rows[:SHOWN], text_columns=columns)


def expected_note(evaluation: Evaluation, problems: Sequence[Problem], confidence: float) -> str:
    """Return how many of the golden answers and of the model's are right by `expected`, or that no answered row has it."""
    pairs = [
        (problem, sample.reply)
        for problem, sample in zip(problems, evaluation.samples, strict=True)
        if problem.meta["expected"] and sample.verdict is not Verdict.UNGRADED
    ]
    if not pairs:
        return (
            "Agreement is not accuracy: a right answer differs from a wrong golden one. For the accuracy of both, write the right answer "
            "as `expected` in the rows whose right answer you know."
        )
    old, new = (
        np.array(side)
        for side in zip(
            *((_is_expected(one, one.answer), _is_expected(one, reply)) for one, reply in pairs), strict=True
        )
    )
    change = difference_over_seeds([old], [new], confidence)
    better, worse = change.interval.low > 0, change.interval.high < 0
    verdict = "the model is better" if better else "the golden answers are better" if worse else "either may be better"
    return (
        f"Of {len(pairs):,} answered rows with an expected answer, {percent(old.mean())} % of the golden answers are right and "
        f"{percent(new.mean())} % of the model's: {100 * change.mean:+.1f} points {percent_interval(change.interval)}: {verdict}."
    )


def _is_expected(problem: Problem, reply: str) -> bool:
    form, right = (
        canonical_form(text, problem.meta["kind"], gold=problem.meta["expected"])
        for text in (reply, problem.meta["expected"])
    )
    return form is not None and form == right
