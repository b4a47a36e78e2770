"""Evaluations and comparisons as text tables for a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from rorqual.evals.compare import Comparison
from rorqual.evals.evaluation import ALL, Evaluation, EvaluationRow
from rorqual.evals.stats import Interval
from rorqual.evals.verdict import INTERVALS_NOTE, SIGNS
from rorqual.evals.votes import RuleResult
from rorqual.report.table import Table


def percent(value: float) -> str:
    """Return `0.614` as `61.4`, and NaN (the mean of no values) as `-`."""
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def percent_interval(interval: Interval) -> str:
    """Return an interval in percent, such as `[55.1, 67.3]`."""
    return f"[{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def p_value_text(p_value: float | None) -> str:
    """Return a p-value with three decimals, or an upper bound if the p-value is below 0.001."""
    if p_value is None:
        return "-"
    return f"{p_value:.3f}" if p_value >= 0.001 else "<0.001" if p_value >= 1e-6 else "<1e-6"


def table(evaluation: Evaluation) -> str:
    """Return a table of accuracy in percent by family and level, with 95 % intervals, the best baseline and answer lengths.

    `unmarked %` is the share of replies without a marked answer, which are wrong. `last %` is the accuracy if the last number,
    label or line of each reply is read as its answer.
    """
    rows: list[EvaluationRow] = list(evaluation.rows("level"))
    if len(rows) > 1:
        families = evaluation.rows("family")
        rows += families if len(families) not in (1, len(rows)) else []
        rows += evaluation.rows("all")
    heads = [
        "family",
        "level",
        "right",
        "accuracy %",
        "95 % interval",
        "unmarked %",
        "last %",
        "best baseline %",
        "ungraded",
        "thought %",
        "thinking",
        "length",
        "cut off",
    ]
    title = (
        f"{evaluation.model or evaluation.task}: {evaluation.task}, {evaluation.split}, thinking {evaluation.thinking}"
    )
    drawn = Table(title=title, heads=heads, rows=[_table_cells(row) for row in rows], text_columns=2).text()
    return "\n".join(filter(None, [drawn, ungraded_note(evaluation)]))


def rules_table(title: str, rules: Iterable[RuleResult]) -> str:
    """Return a table with the accuracy and the tokens per problem of each rule that makes one answer from several samples."""
    heads = ["answer", "samples", "accuracy %", "95 % interval", "tokens per problem"]
    rows = (
        [one.rule, str(one.samples), percent(one.accuracy), percent_interval(one.interval), f"{one.tokens:.1f}"]
        for one in rules
    )
    return Table(title=title, heads=heads, rows=rows).text()


def best_baseline_text(row: EvaluationRow) -> str:
    """Return the best baseline in percent and its name, such as `19.4 (tree)`, or `-` if there is none."""
    name, value = row.best_baseline
    return f"{percent(value)} ({name})" if name else percent(value)


def ungraded_note(evaluation: Evaluation) -> str:
    """Return a sentence with the number of ungraded answers, and with the accuracy if all ungraded answers were wrong, and if
    all were correct."""
    [row] = evaluation.rows("all")
    if not row.ungraded:
        return ""
    total = row.graded + row.ungraded
    low, high = percent(row.right / total), percent((row.right + row.ungraded) / total)
    return (
        f"{row.ungraded} of {total} answers are ungraded and left out of the accuracy. "
        f"It would be {low} % if all of them were wrong, and {high} % if all were right."
    )


def unmarked_replies_note(evaluations: Mapping[str, Evaluation]) -> str:
    """State the share of unmarked replies, and the accuracy by the last number, label or line of a reply. For files of older
    Rorqual versions, return ""."""
    rows = {name: evaluation.rows("all")[0] for name, evaluation in evaluations.items()}
    if all(math.isnan(row.last) for row in rows.values()):
        return ""
    unmarked = ", ".join(f"{name} {percent(row.unmarked)} %" for name, row in rows.items())
    last = ", ".join(f"{name} {percent(row.last)} %" for name, row in rows.items())
    return (
        f"Replies without a marked answer: {unmarked}. Accuracy by the last number, label or line of a reply: {last}."
    )


def _table_cells(row: EvaluationRow) -> list[str]:
    return [
        row.family,
        row.level,
        f"{row.right}/{row.graded}",
        percent(row.accuracy),
        percent_interval(row.interval),
        percent(row.unmarked),
        percent(row.last),
        best_baseline_text(row),
        str(row.ungraded),
        percent(row.thought),
        f"{row.thinking_length:.1f}",
        f"{row.length:.1f}",
        str(row.truncated),
    ]


def comparison_table(rows: Sequence[Comparison], title: str = "after - before, paired") -> Table:
    """Return a table of paired differences with intervals. Shares are in percent, and losses in nats per token.

    With one seed, the table has exact p-values. With several seeds, it has both intervals and the verdict instead: ● higher,
    ✕ lower or ○ open.
    """
    confidence = rows[0].difference.interval.confidence if rows else 0.95
    several, unit = any(len(row.by_seed) > 1 for row in rows), " nats" if rows and rows[0].unit == "nats" else " %"
    heads = ["family", "level", f"before{unit}", f"after{unit}", "difference", f"{100 * confidence:g} % interval"]
    heads += ["Student's t", "verdict"] if several else []
    heads += ["gained", "lost", "left out"] + ([] if several else ["p"])
    cells = [_comparison_cells(row, several) for row in rows]
    return Table(title=title, heads=heads, rows=cells, note=INTERVALS_NOTE if several else "", text_columns=2)


def _comparison_cells(row: Comparison, several: bool) -> list[str]:
    def interval_text(interval: Interval | None) -> str:
        if interval is None:
            return "one seed"
        low, high = interval.low, interval.high
        return percent_interval(interval) if row.unit == "points" else f"[{low:+.4f}, {high:+.4f}]"

    before, after = (percent(value) if row.unit == "points" else f"{value:.4f}" for value in (row.before, row.after))
    mean = row.difference.mean
    cells = [row.family, "" if row.level == ALL else row.level, before, after]
    cells += [f"{100 * mean:+.1f}" if row.unit == "points" else f"{mean:+.4f}", interval_text(row.difference.interval)]
    cells += [interval_text(row.student), SIGNS[row.verdict]] if several else []
    cells += [str(row.gained), str(row.lost), str(row.left_out)]
    return cells if several else [*cells, p_value_text(row.p_value)]
