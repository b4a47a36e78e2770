"""Rules that choose one answer from several samples of a problem: the majority answer,
the most likely sample, or the sample that a verifier scores highest.
The majority rule is self-consistency (Wang et al. 2022, 2203.11171). No rule is right on a problem without a right sample, so
the share of problems with a right sample is an upper bound of a rule's accuracy. All rules reuse the samples of one evaluation.
If a rule uses fewer samples than the evaluation has, the rule's result is averaged over disjoint groups of consecutive samples.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rorqual.core.records import StopWhen
from rorqual.evals.calibration import sigmoid
from rorqual.evals.evaluation import Evaluation, GradedSample
from rorqual.evals.stats import Interval, wilson
from rorqual.tasks.task import Verdict

SURE = 0.95
"""The probability of the leading answer above which `majority_is_likely` stops sampling."""
SamplesOfProblem = Sequence[GradedSample]


@dataclass(frozen=True)
class RuleResult:
    """The result of one rule on all problems.

    - `samples`: number of samples per problem, or the largest number for rules that stop early.
    - `values`: for each problem, the probability that the rule's answer is right (None: ungraded). `costs`: for each problem,
      the number of generated tokens.
    """

    rule: str
    samples: int
    values: tuple[float | None, ...]
    costs: tuple[float, ...]

    @property
    def _right(self) -> tuple[float, int]:
        graded = [value for value in self.values if value is not None]
        return min(math.fsum(graded), len(graded)), len(graded)

    @property
    def accuracy(self) -> float:
        """The mean of `values` over graded problems, or NaN if no problem is graded."""
        right, graded = self._right
        return right / graded if graded else math.nan

    @property
    def interval(self) -> Interval:
        """Wilson's 95 % interval of the accuracy."""
        return wilson(*self._right)

    @property
    def tokens(self) -> float:
        """The mean number of generated tokens per problem."""
        return math.fsum(self.costs) / len(self.costs)


def one_sample_accuracy(group: SamplesOfProblem) -> float | None:
    """Return the share of right samples, or None if all samples are ungraded."""
    graded = [sample for sample in group if sample.verdict is not Verdict.UNGRADED]
    return _right(graded) if graded else None


def majority_accuracy(group: SamplesOfProblem) -> float | None:
    """Return the probability that the majority answer is right, or None if the replies with this answer are ungraded.

    A tie is broken at random, so the probability is the mean over the leading answers. Samples without an answer do not vote.
    If no sample votes, return 0, or None if all replies are ungraded.
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


def most_likely_accuracy(group: SamplesOfProblem) -> float | None:
    """Return 1 if the sample with the highest mean log-probability per token is right, 0 if this sample is wrong, and None if
    it is ungraded."""
    return _best_valued_accuracy(group, [sample.logprob for sample in group])


def best_scored_accuracy(group: SamplesOfProblem) -> float | None:
    """Return 1 if the sample with the verifier's highest score is right, 0 if this sample is wrong, and None if it is
    ungraded."""
    return _best_valued_accuracy(group, [sample.score for sample in group])


def weighted_majority_accuracy(group: SamplesOfProblem) -> float | None:
    """Return the probability that the answer with the highest sum of the verifier's probabilities is right, or None if the replies
    with this answer are ungraded (weighted self-consistency, Li et al. 2022, 2206.02336, section 3.3)."""
    weights: dict[str, float] = {}
    for sample in group:
        if sample.answered is not None and sample.score is not None:
            weights[sample.answered] = weights.get(sample.answered, 0.0) + sigmoid(sample.score)
    if not weights:
        return majority_accuracy(group)
    most = max(weights.values())
    answers = [answer for answer, weight in weights.items() if weight == most]
    found = [majority_accuracy([sample for sample in group if sample.answered == answer]) for answer in answers]
    known = [value for value in found if value is not None]
    return math.fsum(known) / len(known) if known else None


def _best_valued_accuracy(group: SamplesOfProblem, values: Sequence[float | None]) -> float | None:
    """Return 1 if the sample with the highest value is right, 0 if this sample is wrong, and None if it is ungraded. If several
    samples have the highest value, return the share of right samples among them."""
    known = [-math.inf if value is None else value for value in values]
    return one_sample_accuracy([sample for sample, value in zip(group, known, strict=True) if value == max(known)])


def any_sample_right(group: SamplesOfProblem) -> float | None:
    """Return 1 if any sample is right, else 0, or None if all samples are ungraded. No rule that chooses among the samples can
    exceed this number."""
    verdicts = {sample.verdict for sample in group}
    return None if verdicts == {Verdict.UNGRADED} else float(Verdict.RIGHT in verdicts)


def majority_is_known(answers: Sequence[str | None], most: int) -> bool:
    """Return whether the first votes `answers` already decide the majority of `most` votes."""
    lead, second = _two_highest_vote_counts(answers)
    return lead - second > most - len(answers)


def majority_is_likely(answers: Sequence[str | None], threshold: float = SURE) -> bool:
    """Return whether the leading answer is more frequent than the second answer with a probability above `threshold`.

    The probability is the posterior probability, under a uniform prior, that the leading answer gets more than half of all
    votes for the two answers (the Beta rule of Adaptive-Consistency, Aggarwal et al. 2023, 2305.11860, section 3).
    """
    lead, second = _two_highest_vote_counts(answers)
    trials = lead + second + 1
    return sum(math.comb(trials, count) for count in range(lead + 1)) / 2**trials > threshold


def _two_highest_vote_counts(answers: Sequence[str | None]) -> tuple[int, int]:
    """Return the number of votes for the leading answer and for the second answer."""
    counts = [count for _, count in Counter(answer for answer in answers if answer is not None).most_common(2)]
    lead, second, *_ = *counts, 0, 0
    return lead, second


StopRule = Callable[[Sequence[str | None]], bool]
"""A rule that returns whether the votes so far are enough to stop sampling."""


def stop_rule(stop_when: StopWhen, most: int) -> StopRule:
    """Return the rule by which sampling stops before `most` votes."""
    if stop_when == "settled":
        return lambda answers: majority_is_known(answers, most)
    if stop_when == "sure":
        return lambda answers: majority_is_known(answers, most) or majority_is_likely(answers)
    return lambda answers: False


STOPPED: dict[StopWhen, str] = {"settled": "majority, until settled", "sure": f"majority, until {SURE:.0%} sure"}
"""Names of the rules that stop sampling early, as shown in tables."""


def samples_until(group: SamplesOfProblem, sure: StopRule) -> int:
    """Return the smallest number of samples at which the rule `sure` holds, or the number of all samples if `sure` never
    holds."""
    answers = [sample.answered for sample in group]
    return next((count for count in range(1, len(group)) if sure(answers[:count])), len(group))


def rule_results(evaluation: Evaluation) -> list[RuleResult]:
    """Return the results of all rules, for 1, 2, 4, ... samples and for all samples of each problem.

    Rules of the majority need canonical answers, the rule of the most likely sample needs log-probabilities, and rules of the
    verifier need scores. A rule is left out if the samples lack the data that it needs. If sampling may have stopped early,
    only the results of the first sample and of the majority are returned.
    """
    problems, n = list(evaluation.samples_by_problem.values()), evaluation.params.n
    if evaluation.stop_when != "never":
        first = [group[:1] for group in problems]
        return [
            _rule_result("one sample", 1, first, one_sample_accuracy),
            _majority_result(STOPPED[evaluation.stop_when], n, problems),
        ]
    sizes = sorted({n, *(2**power for power in range(1, n.bit_length()) if 2**power <= n)})
    voted = any(sample.answered is not None for sample in evaluation.samples)
    rules: list[tuple[str, Callable[[SamplesOfProblem], float | None]]] = []
    rows = [_rule_result("one sample", 1, problems, one_sample_accuracy)]
    if voted:
        rows += [_rule_result("majority", size, problems, majority_accuracy) for size in sizes]
        for stop_when, name in STOPPED.items():
            sure = stop_rule(stop_when, n)
            rows.append(_majority_result(name, n, [group[: samples_until(group, sure)] for group in problems]))
    if all(sample.logprob is not None for sample in evaluation.samples):
        rules.append(("most likely", most_likely_accuracy))
    if any(sample.score is not None for sample in evaluation.samples):
        rules.append(("best by verifier", best_scored_accuracy))
        if voted:
            rules.append(("majority weighted by verifier", weighted_majority_accuracy))
    rules.append(("any right (bound)", any_sample_right))
    return [*rows, *(_rule_result(name, size, problems, rule) for name, rule in rules for size in sizes)]


def refine_results(evaluation: Evaluation) -> list[RuleResult]:
    """Return the result of the first replies, and of the replies of each round of `refine`. Token counts include all earlier rounds."""
    rounds = [(*sample.earlier, sample) for sample in evaluation.samples]
    found = []
    for last in range(max(map(len, rounds))):
        shown = tuple(replies[last].model_copy(update={"earlier": replies[:last]}) for replies in rounds)
        problems = list(evaluation.model_copy(update={"samples": shown}).samples_by_problem.values())
        found.append(
            _rule_result(
                "first reply" if not last else f"refined {last} time{'s' * (last > 1)}",
                1,
                problems,
                one_sample_accuracy,
            )
        )
    return found


def _majority_result(name: str, size: int, problems: Sequence[SamplesOfProblem]) -> RuleResult:
    return RuleResult(name, size, tuple(map(majority_accuracy, problems)), tuple(map(_tokens, problems)))


def _rule_result(
    name: str, size: int, problems: Sequence[SamplesOfProblem], rule: Callable[[SamplesOfProblem], float | None]
) -> RuleResult:
    values, tokens = [], []
    for group in problems:
        parts = [group[start : start + size] for start in range(0, len(group) - size + 1, size)]
        found = [value for part in parts if (value := rule(part)) is not None]
        values.append(math.fsum(found) / len(found) if found else None)
        tokens.append(sum(map(_tokens, parts)) / len(parts))
    return RuleResult(name, size, tuple(values), tuple(tokens))


def _right(graded: SamplesOfProblem) -> float:
    return sum(sample.verdict is Verdict.RIGHT for sample in graded) / len(graded)


def _tokens(group: SamplesOfProblem) -> int:
    return sum(sample.total_tokens for sample in group)
