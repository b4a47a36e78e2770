"""Several samples of a problem become one answer: majority votes (self-consistency, Wang et al. 2022, 2203.11171), the most
likely sample, and the best sample by the grader as an upper bound.

All rules reuse the samples of one evaluation. The rule for fewer samples than the evaluation has averages over disjoint groups of
consecutive samples.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rorqual.evals.evaluation import Evaluation, GradedSample
from rorqual.evals.stats import Interval, wilson
from rorqual.tasks.base import Verdict

SURE = 0.95
"""The probability at which `likely_majority` stops sampling."""
Group = Sequence[GradedSample]


@dataclass(frozen=True)
class RuleResult:
    """The result of one rule on all problems.

    - `samples`: number of samples per problem; for rules that stop early, the largest number.
    - `accuracy`: share of right answers over graded problems, with its Wilson interval over problems.
    - `tokens`: mean number of generated tokens per problem.
    """

    rule: str
    samples: int
    accuracy: float
    interval: Interval
    tokens: float


def majority(group: Group) -> float | None:
    """Return the probability that the majority answer is right, or None if its replies are ungraded.

    A tie is broken at random, so several leading answers count by their mean. Samples without an answer do not vote. Without any
    vote, the result is 0, or None if all replies are ungraded.
    """
    counts = Counter(sample.answered for sample in group if sample.answered is not None)
    if not counts:
        return None if all(sample.verdict is Verdict.UNGRADED for sample in group) else 0.0
    most = max(counts.values())
    shares = []
    for answer in (answer for answer, count in counts.items() if count == most):
        graded = [sample for sample in group if sample.answered == answer and sample.verdict is not Verdict.UNGRADED]
        if not graded:
            return None
        shares.append(_right(graded))
    return math.fsum(shares) / len(shares)


def most_likely(group: Group) -> float | None:
    """Return whether the sample with the highest mean log-probability per token is right, or None if it is ungraded."""
    best = max(group, key=lambda sample: -math.inf if sample.logprob is None else sample.logprob)
    return None if best.verdict is Verdict.UNGRADED else float(best.verdict is Verdict.RIGHT)


def any_right(group: Group) -> float | None:
    """Return whether any sample is right, or None if all are ungraded. No choice among the samples can exceed this bound."""
    verdicts = {sample.verdict for sample in group}
    return None if verdicts == {Verdict.UNGRADED} else float(Verdict.RIGHT in verdicts)


def settled(answers: Sequence[str | None], most: int) -> bool:
    """Return whether the majority of `most` votes is known after the first votes `answers`."""
    lead, second = _leading(answers)
    return lead - second > most - len(answers)


def likely_majority(answers: Sequence[str | None], threshold: float = SURE) -> bool:
    """Return whether the leading answer is more frequent than the second one with a probability above `threshold`.

    The probability is that of a share above 1/2 under a uniform prior (the Beta rule of Adaptive-Consistency, Aggarwal et al. 2023,
    2305.11860, section 3).
    """
    lead, second = _leading(answers)
    trials = lead + second + 1
    return sum(math.comb(trials, count) for count in range(lead + 1)) / 2**trials > threshold


def _leading(answers: Sequence[str | None]) -> tuple[int, int]:
    """Return the number of votes for the leading answer and for the second one."""
    counts = [count for _, count in Counter(answer for answer in answers if answer is not None).most_common(2)]
    lead, second, *_ = *counts, 0, 0
    return lead, second


def needed(group: Group, sure: Callable[[Sequence[str | None]], bool]) -> int:
    """Return after how many samples `sure` first holds, and the number of samples if it never does."""
    answers = [sample.answered for sample in group]
    return next((count for count in range(1, len(group)) if sure(answers[:count])), len(group))


def rule_results(evaluation: Evaluation) -> list[RuleResult]:
    """Return the results of all rules, for 1, 2, 4, ... samples and for all samples of each problem.

    Without log-probabilities (as of a server), there are no rows for the most likely sample.
    """
    groups: dict[str, list[GradedSample]] = {}
    for sample in evaluation.samples:
        groups.setdefault(sample.key, []).append(sample)
    problems, n = list(groups.values()), evaluation.params.n
    sizes = sorted({n, *(2**power for power in range(1, n.bit_length()) if 2**power <= n)})
    rows = [_row("one sample", 1, problems, majority)]
    rows += [_row("majority", size, problems, majority) for size in sizes]
    for name, sure in (
        ("majority, until settled", lambda answers: settled(answers, n)),
        (f"majority, until {SURE:.0%} sure", lambda answers: settled(answers, n) or likely_majority(answers)),
    ):
        parts = [group[: needed(group, sure)] for group in problems]
        rows.append(_summary(name, n, [majority(part) for part in parts], [_tokens(part) for part in parts]))
    if all(sample.logprob is not None for sample in evaluation.samples):
        rows += [_row("most likely", size, problems, most_likely) for size in sizes]
    return [*rows, *(_row("any right (bound)", size, problems, any_right) for size in sizes)]


def _row(name: str, size: int, problems: Sequence[Group], rule: Callable[[Group], float | None]) -> RuleResult:
    values, tokens = [], []
    for group in problems:
        parts = [group[start : start + size] for start in range(0, len(group) - size + 1, size)]
        found = [value for part in parts if (value := rule(part)) is not None]
        values.append(math.fsum(found) / len(found) if found else None)
        tokens.append(sum(map(_tokens, parts)) / len(parts))
    return _summary(name, size, values, tokens)


def _summary(rule: str, size: int, values: Sequence[float | None], tokens: Sequence[float]) -> RuleResult:
    graded = [value for value in values if value is not None]
    right = min(math.fsum(graded), len(graded))
    accuracy = right / len(graded) if graded else math.nan
    return RuleResult(rule, size, accuracy, wilson(right, len(graded)), math.fsum(tokens) / len(tokens))


def _right(graded: Group) -> float:
    return sum(sample.verdict is Verdict.RIGHT for sample in graded) / len(graded)


def _tokens(group: Group) -> int:
    return sum(sample.tokens for sample in group)
