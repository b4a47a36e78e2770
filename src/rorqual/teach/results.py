"""The results of `teach`: which rung to use, how often it is right, how fast it answers, and what can be promised."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rorqual.core.errors import DataError
from rorqual.core.records import read_json
from rorqual.evals.compare import Comparison, compare_pair
from rorqual.evals.evaluation import Evaluation, EvaluationRow
from rorqual.evals.table import p_value_text, percent, percent_interval
from rorqual.report.table import Table
from rorqual.tasks.examples import AnswerKind, read_task_json
from rorqual.teach.held_out import CLEARLY, HeldOut
from rorqual.teach.paths import TeachPaths
from rorqual.teach.promise import DOUBT, Promise
from rorqual.teach.rungs.language_model import ALONE, TAUGHT
from rorqual.teach.rungs.simple import MAJORITY

USUAL = 0.95
"""The accuracy whose coverage the report gives if the user asks for no promise."""


@dataclass(frozen=True)
class TeachResults:
    """The results of all rungs.

    `held_out` has the cheapest rung first, and `skipped` the reason for each rung that was left out. `chosen` and `other` are evaluations on
    the test split, of the chosen rung and of the best other one. `forced` says whether the user named the rung. `asked` is the accuracy
    that the user wants to be promised, or 0. `possible` is the promise of that accuracy, or of `USUAL` if the user wants none; it is None
    if the examples are too few for it. `promises` has the accuracies that can be promised, each with the share of prompts that is answered
    then; it is empty for a language model, which promises nothing. `probability` has the calibrated probability of the chosen rung's
    answer to each test example, by key. `sizes` has the bytes of the files of the rungs that were saved. `levels`
    has a table of the levels of difficulty if the answerer is a cascade. `gains` are sentences on the gain by written rows.
    """

    held_out: list[HeldOut]
    skipped: Mapping[str, str]
    chosen: Evaluation
    other: Evaluation
    forced: bool
    asked: float
    possible: Promise | None
    promises: Sequence[tuple[float, float]]
    probability: Mapping[str, float]
    sizes: Mapping[str, int]
    levels: list[Table]
    gains: Sequence[str] = ()

    def of(self, name: str) -> HeldOut:
        """Return the held-out result of a rung by its name."""
        return next(one for one in self.held_out if one.name == name)

    @property
    def difference(self) -> Comparison:
        """The chosen rung's gain over the best other one, on the test split."""
        return compare_pair(self.other, self.chosen, grain="all")[0]

    def sentences(self, openings: int) -> list[str]:
        """Return the sentences that answer the user's questions: what to use, how often it is right, and when it says that it does not
        know. `openings` is the number of times that the test split was read."""
        pairs = ", ".join(f"promise={bound:g} answers {percent(share)} %" for bound, share in self.promises)
        possible = [f"Possible promises, without training again: {pairs}."] if pairs else []
        return [f"{self._use()} {self._promised()}", *possible, self._beside(), *self.gains, self._how(openings)]

    def _use(self) -> str:
        row, name = _row(self.chosen), self.chosen.model
        text = (
            f"{name}: right on {percent(row.accuracy)} % of {row.graded:,} test examples {percent_interval(row.interval)}, "
            f"{milliseconds(self.of(name).answer_seconds)} ms an answer"
        )
        if name == MAJORITY and not self.forced:
            return f"No method clearly beats the most frequent answer, so there is nothing worth serving ({text})."
        return f"{'As asked, use' if self.forced else 'Use'} {text}."

    def _beside(self) -> str:
        row, name, ahead = _row(self.other), self.other.model, self.difference
        p = p_value_text(ahead.p_value)
        return (
            f"Of the others, {name} does best on held-out examples; on the test examples it is right on {percent(row.accuracy)} % at "
            f"{milliseconds(self.of(name).answer_seconds)} ms an answer: {self.chosen.model} gains "
            f"{100 * ahead.difference.mean:+.1f} points {percent_interval(ahead.difference.interval)}, p {p if p.startswith('<') else f'= {p}'}."
        )

    def _promised(self) -> str:
        accuracy = self.asked or USUAL
        if self.possible is None:
            held = self.of(self.chosen.model)
            if {TAUGHT, ALONE}.intersection(self.chosen.model.split(", then ")):
                why = "the checkpoint of the language model was chosen on the same held-out examples"
            else:
                why = (
                    f"on {len(held.right):,} held-out examples, {held.name} is right on {percent(held.accuracy)} %, and no tested share of "
                    "the surest answers has a lower bound so high"
                )
            end = " So every prompt is refused." if self.asked else ""
            return f"An accuracy of {percent(accuracy)} % cannot be promised: {why}.{end}"
        made, answered, right = self.possible, *self.answered_on_test()
        kept = f" On the test examples it answered {answered:,}, and {right:,} of these were right." if answered else ""
        verb = "It answers" if self.asked else f"With promise={USUAL:g} it would answer"
        others = ", and refuses the others, of which it is not sure" if made.coverage < 1 else ""
        return (
            f"{verb} {percent(made.coverage)} % of the held-out prompts with a promised accuracy of {percent(accuracy)} % (with "
            f"{percent(1 - DOUBT)} % confidence, for prompts like these){others}.{kept}"
        )

    def answered_on_test(self) -> tuple[int, int]:
        """Return how many test examples the promise's threshold answers, and how many of these answers are right."""
        if self.possible is None:
            return 0, 0
        threshold = self.possible.threshold
        kept = [one for one in self.chosen.samples if self.probability[one.key] >= threshold]
        return len(kept), sum(one.verdict.value == "right" for one in kept)

    def _how(self, openings: int) -> str:
        rule = (
            "The user named the rung"
            if self.forced
            else "The rung is the cheapest that no costlier one beats by more than "
            f"{'one standard error' if CLEARLY == 1 else f'{CLEARLY:g} standard errors'} on held-out examples"
        )
        if any(one.name in (TAUGHT, ALONE) for one in self.held_out):
            rule += ". The language model's checkpoint was chosen on the same examples, which favours it"
        reads = "once, for two rungs" if openings == 1 else f"{openings} times"
        return (
            f"{rule}. The intervals (95 %) show the doubt from the number of examples, not from training again with another seed; the test "
            f"split was read {reads}."
        )

    def table(self) -> Table:
        """Return a table with one row for each rung, the cheapest first, and the reasons why others were skipped."""
        heads = (
            "rung",
            "held-out right %",
            "95 % interval",
            "examples",
            "test right %",
            "95 % interval",
            "ms an answer",
            "s to fit",
            "MB",
        )
        note = (
            "A method with fewer examples was measured on some folds only: a language model on the first, another one on as many as its "
            "share of `minutes` allows."
        )
        fewer = len({len(one.right) for one in self.held_out}) > 1
        return Table(title="all rungs, the cheapest first", heads=heads, rows=[*self._cells()], note=note * fewer)

    def _cells(self) -> Iterator[tuple[str, ...]]:
        tested = {one.model: _row(one) for one in (self.chosen, self.other)}
        for one in self.held_out:
            row, size = tested.get(one.name), self.sizes.get(one.name)
            yield (
                f"{one.name}{' (chosen)' * (one.name == self.chosen.model)}",
                percent(one.accuracy),
                percent_interval(one.interval),
                f"{len(one.right):,}",
                "" if row is None else percent(row.accuracy),
                "" if row is None else percent_interval(row.interval),
                milliseconds(one.answer_seconds),
                f"{one.fit_seconds:,.1f}",
                "" if size is None else f"{size / 1e6:,.1f}",
            )

    def to_json(self, openings: int) -> dict[str, Any]:
        """Return all results as JSON, for other programs. Accuracies are shares, and times are in seconds."""
        rows = [
            {
                "name": one.name,
                "held_out": {"right": sum(one.right.values()), "of": len(one.right), "interval": vars(one.interval)},
                "answer_seconds": one.answer_seconds,
                "fit_seconds": one.fit_seconds,
                "bytes": self.sizes.get(one.name),
            }
            for one in self.held_out
        ]
        tested = {
            one.model: {"right": row.right, "of": row.graded, "interval": vars(row.interval)}
            for one in (self.chosen, self.other)
            for row in [_row(one)]
        }
        ahead, (answered, right) = self.difference, self.answered_on_test()
        return {
            "sentences": self.sentences(openings),
            "chosen": self.chosen.model,
            "other": self.other.model,
            "rungs": rows,
            "skipped": dict(self.skipped),
            "test": tested,
            "difference": {
                "mean": ahead.difference.mean,
                "interval": vars(ahead.difference.interval),
                "p": ahead.p_value,
                "gained": ahead.gained,
                "lost": ahead.lost,
            },
            "promise": self.possible
            and {
                **self.possible.model_dump(mode="json"),
                "asked": bool(self.asked),
                "test_answered": answered,
                "test_right": right,
            },
            "test_openings": openings,
        }


def _row(evaluation: Evaluation) -> EvaluationRow:
    return evaluation.rows("all")[0]


def milliseconds(seconds: float) -> str:
    """Return a time in milliseconds with two digits."""
    return f"{1000 * seconds:.2g}" if seconds < 0.0995 else f"{1000 * seconds:,.0f}"


def load_results(out: Path) -> tuple[AnswerKind, Evaluation, Evaluation]:
    """Return the kind of answers, and the evaluations of the best other rung and of the chosen one. Raises DataError if the folder has no
    results."""
    paths, remedy = TeachPaths(out), "Give the folder that `rorqual teach` wrote, or finish that command."
    names = read_json(paths.choice, "the choice of a rung", remedy)
    files = [paths.evaluation_file(names[key]) for key in ("other", "chosen")]
    if not all(file.is_file() for file in files):
        raise DataError("no results of a taught model", where=str(out), remedy=remedy)
    other, chosen = map(Evaluation.load, files)
    return read_task_json(paths.data)["kind"], other, chosen
