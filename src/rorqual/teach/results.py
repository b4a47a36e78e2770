"""The results of a taught model on the test split: the gain over each baseline, with intervals."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rorqual.core.errors import ConfigError, DataError, suggest_name
from rorqual.evals.compare import Comparison, compare_pair
from rorqual.evals.evaluation import Evaluation, EvaluationRow
from rorqual.evals.stats import Interval
from rorqual.evals.table import p_value_text, percent, percent_interval
from rorqual.report.table import Table
from rorqual.tasks.examples import AnswerKind, read_task_json
from rorqual.teach.paths import AFTER, ALONE, BEFORE, TeachPaths


@dataclass(frozen=True)
class ModelResult:
    """The result of a model or baseline on the test split. `ahead` is the comparison of the taught model with this model or
    baseline. For the taught model itself, `ahead` is None."""

    name: str
    row: EvaluationRow
    ahead: Comparison | None

    @property
    def is_base(self) -> bool:
        """Whether the result is the base model's, with or without examples in the prompt."""
        return self.name.startswith("base, ")

    @property
    def title(self) -> str:
        """The name of the model or baseline, as used in sentences."""
        if self.is_base:
            return f"the base model with {self.name.removeprefix('base, ')} in its prompt"
        return "your rule" if self.name == "rule" else self.name

    @property
    def gain(self) -> Interval:
        """The interval of the taught model's gain in accuracy over this model or baseline."""
        assert self.ahead is not None
        return self.ahead.difference.interval


@dataclass(frozen=True)
class TeachResults:
    """The results of the baselines and of the taught model on the test split. The taught model comes last."""

    evaluations: Mapping[str, Evaluation]

    @property
    def results(self) -> list[ModelResult]:
        after = self.evaluations[AFTER]
        return [
            ModelResult(name, one.rows("all")[0], None if name == AFTER else compare_pair(one, after, grain="all")[0])
            for name, one in self.evaluations.items()
        ]

    @property
    def results_by_accuracy(self) -> list[ModelResult]:
        """All results by rising accuracy of the baselines. The taught model comes last."""
        *others, taught = self.results
        return [*sorted(others, key=lambda one: one.row.accuracy), taught]

    def summary_sentences(self, openings: int) -> list[str]:
        """Return sentences on the gains over the base model and the best baseline, with
        intervals. `openings` is the number of times that the test split was read."""
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
        if classical.gain.low <= 0:
            behind = "worse than" if classical.gain.high < 0 else "not shown to be better than"
            lead = (
                f"The taught model is {behind} {classical.title}, which is right on {percent(classical.row.accuracy)} % and needs no "
                f"language model (difference {gain(classical)})."
            )
            sentences = [lead, first]
        elif best.name == BEFORE:
            sentences = [first, "No other baseline is better than the base model without examples."]
        elif best.gain.low > 0:
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


def gain(result: ModelResult) -> str:
    """Return a text with the taught model's gain over a baseline in percentage points, its interval, and the p-value."""
    assert result.ahead is not None
    ahead = result.ahead
    p = p_value_text(ahead.p_value)
    return f"{100 * ahead.difference.mean:+.1f} points {percent_interval(ahead.difference.interval)}, p {p if p.startswith('<') else f'= {p}'}"


def load_results(out: Path, than: str = "") -> tuple[AnswerKind, Evaluation, Evaluation]:
    """Return the kind of answers, the evaluation of the baseline `than` (default: the base model), and the evaluation of the taught model.
    Raises DataError if the folder has no results, and ConfigError if there is no baseline `than`.
    """
    paths = TeachPaths(out)
    if not paths.evaluation_file(AFTER).is_file():
        raise DataError(
            "no results of a taught model",
            where=str(out),
            remedy="Give the folder that `rorqual teach` wrote, or finish that command.",
        )
    after = Evaluation.load(paths.evaluation_file(AFTER))
    names: list[str] = json.loads(paths.baselines.read_bytes())["names"]
    if than and than not in names:
        raise ConfigError(f"no baseline '{than}'", where="key 'than'", remedy=suggest_name(than, names))
    return read_task_json(paths.data)["kind"], Evaluation.load(paths.evaluation_file(than or BEFORE)), after


def results_json(found: TeachResults, sentences: Sequence[str], opened: int) -> dict[str, Any]:
    """Return all results as JSON, for other programs. A difference is the accuracy of the taught model minus the accuracy of
    the baseline, as a share.
    """
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


def results_table(found: TeachResults) -> Table:
    """Return a table with one row for each baseline, by rising accuracy, and a last row for the taught model."""
    heads = (
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
    return Table(title="on the test split", heads=heads, rows=[_result_cells(one) for one in found.results_by_accuracy])


def _result_cells(one: ModelResult) -> tuple[str, ...]:
    accuracy = (percent(one.row.accuracy), percent_interval(one.row.interval))
    start = (one.name, *accuracy, percent(one.row.unmarked), percent(one.row.last))
    if one.ahead is None:
        return (*start, "", "", "", "", "")
    ahead = one.ahead
    difference = (f"{100 * ahead.difference.mean:+.1f}", percent_interval(ahead.difference.interval))
    return (*start, *difference, p_value_text(ahead.p_value), str(ahead.gained), str(ahead.lost))
