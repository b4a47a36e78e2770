"""One answer from several samples: majority, early stopping, the most likely sample, and the bound."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from in_process import output_of
from rorqual.core.errors import ConfigError
from rorqual.engine.request import Completion, Request, SamplingParams
from rorqual.evals.evaluating import evaluate
from rorqual.evals.evaluation import Evaluation, GradedSample
from rorqual.evals.passk import pass_at_k
from rorqual.evals.stats import wilson
from rorqual.evals.votes import (
    any_sample_right,
    majority_accuracy,
    majority_is_known,
    majority_is_likely,
    most_likely_accuracy,
    rule_results,
    samples_until,
)
from rorqual.tasks.find import load_task
from rorqual.tasks.task import Problem, Task, Verdict

RIGHT, WRONG, UNGRADED = Verdict.RIGHT, Verdict.WRONG, Verdict.UNGRADED


def sample(answer: str | None, *, key: str = "p", verdict: Verdict | None = None, **more: Any) -> GradedSample:
    """A sample that answers `answer`; "r" is right."""
    given = verdict or (RIGHT if answer == "r" else WRONG)
    return GradedSample(
        key=key, family="f", prompt="?", answer="r", reply=answer or "", reasoning=None, verdict=given, thinking_tokens=0,
        thought=False, truncated=False, answered=answer, **{"tokens": 1} | more,
    )  # fmt: skip


def group(text: str) -> list[GradedSample]:
    """One sample per letter; "-" gives no answer."""
    return [sample(None if letter == "-" else letter) for letter in text]


def evaluation(groups: Sequence[Sequence[GradedSample]]) -> Evaluation:
    samples = [one.model_copy(update={"key": f"p{number}"}) for number, part in enumerate(groups) for one in part]
    return Evaluation(
        task="t", split="test", seed=0, count=len(groups), per_family=False, thinking="auto",
        params=SamplingParams(n=len(groups[0]), temperature=1.0), samples=tuple(samples),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("votes", "right"),
    [("r", 1), ("a", 0), ("rra", 1), ("raa", 0), ("ra", 1 / 2), ("ar", 1 / 2), ("rab", 1 / 3), ("rraabb-", 1 / 3), ("--r", 1), ("---", 0)],
)  # fmt: skip
def test_the_most_frequent_answer_counts_and_a_tie_counts_by_its_share(votes: str, right: float) -> None:
    """Whatever the order of the samples."""
    for order in set(itertools.permutations(votes)):
        assert majority_accuracy(group("".join(order))) == pytest.approx(right)


def test_what_cannot_be_graded_is_neither_right_nor_wrong() -> None:
    unknown = sample("a", verdict=UNGRADED)
    assert majority_accuracy([unknown, unknown, sample("r")]) is None
    assert majority_accuracy([unknown, sample("r"), sample("r")]) == 1
    unread = sample(None, verdict=UNGRADED)
    assert majority_accuracy([unread, unread]) is None and majority_accuracy([unread, sample(None)]) == 0
    assert most_likely_accuracy([sample("r", logprob=-2.0), unknown.model_copy(update={"logprob": -1.0})]) is None
    assert any_sample_right([unknown, unknown]) is None and any_sample_right([unknown, sample("a")]) == 0.0


def test_the_most_likely_sample_has_the_highest_mean_log_probability() -> None:
    parts = [sample("a", logprob=-3.0), sample("r", logprob=-0.5), sample("b", logprob=-1.0)]
    assert all(most_likely_accuracy(list(order)) == 1 for order in itertools.permutations(parts))
    assert most_likely_accuracy([parts[0], parts[2]]) == 0


@pytest.mark.parametrize("n", [1, 2, 5, 9])
def test_a_majority_is_settled_exactly_if_no_further_votes_can_change_it(n: int) -> None:
    """Against all continuations, with an answer that nobody gave before among them."""
    rng = random.Random(n)
    for _ in range(60):
        votes: list[str | None] = [rng.choice(["r", "a", None]) for _ in range(rng.randint(0, n))]
        rest = n - len(votes)

        def leaders(more: Sequence[str | None], votes: list[str | None] = votes) -> tuple[str, ...]:
            counts = Counter(one for one in (*votes, *more) if one is not None)
            return tuple(sorted(one for one, count in counts.items() if count == max(counts.values())))

        # Only the counts matter, so combinations are enough.
        outcomes = {leaders(more) for more in itertools.combinations_with_replacement(["r", "a", "new", None], rest)}
        certain = len(outcomes) == 1 and len(next(iter(outcomes))) == 1
        assert majority_is_known(votes, n) == certain, votes


def test_the_beta_rule_is_an_integral() -> None:
    """P(share > 1/2) under Beta(lead + 1, second + 1), by the midpoint rule."""
    steps = 20_000
    for lead, second in ((0, 0), (1, 0), (3, 0), (4, 0), (5, 2), (7, 1), (4, 4)):
        points = [(i + 0.5) / steps for i in range(steps)]
        density = [p**lead * (1 - p) ** second for p in points]
        probability = sum(density[steps // 2 :]) / sum(density)
        votes = ["r"] * lead + ["a"] * second + [None]
        for threshold in (probability - 1e-4, probability + 1e-4):
            assert majority_is_likely(votes, threshold) == (probability > threshold)


def test_the_table_against_a_plain_count() -> None:
    rng = random.Random(1)
    groups = [
        [sample(rng.choice(["r", "r", "a", None]), tokens=rng.randint(1, 9), logprob=-rng.random()) for _ in range(8)]
        for _ in range(12)
    ]
    found = {(one.rule, one.samples): one for one in rule_results(evaluation(groups))}
    assert [size for rule, size in found if rule == "majority"] == [2, 4, 8]
    single = [one.verdict is RIGHT for part in groups for one in part]
    assert found["one sample", 1].accuracy == pytest.approx(sum(single) / 96)
    assert found["one sample", 1].tokens == pytest.approx(sum(one.tokens for part in groups for one in part) / 96)
    by_four = [majority_accuracy(part[i : i + 4]) for part in groups for i in (0, 4)]
    assert found["majority", 4].accuracy == pytest.approx(sum(x or 0.0 for x in by_four) / 24)
    assert found["majority", 4].tokens == pytest.approx(sum(one.tokens for part in groups for one in part) / 24)
    whole = found["majority", 8]
    assert whole.interval == wilson(whole.accuracy * 12, 12)
    assert whole.accuracy == pytest.approx(sum(majority_accuracy(part) or 0.0 for part in groups) / 12)
    exact = found["majority, until settled", 8]
    assert exact.accuracy == pytest.approx(whole.accuracy) and exact.tokens < whole.tokens
    used = [samples_until(part, lambda answers: majority_is_known(answers, 8)) for part in groups]
    assert exact.tokens == pytest.approx(sum(one.tokens for part, n in zip(groups, used) for one in part[:n]) / 12)
    assert found["majority, until 95% sure", 8].tokens <= exact.tokens
    assert found["most likely", 8].accuracy == pytest.approx(
        sum(most_likely_accuracy(part) or 0.0 for part in groups) / 12
    )
    bound = [pass_at_k(8, sum(one.verdict is RIGHT for one in part), 8) for part in groups]
    assert found["any right (bound)", 8].accuracy == pytest.approx(sum(bound) / 12)


class Says:
    """A generator that gives fixed replies."""

    def __init__(self, replies: Sequence[str]) -> None:
        self.replies = replies

    def generate(self, requests: Sequence[Request], *, progress: Any = None) -> list[list[Completion]]:
        return [[Completion((1,), [2, 3], [-1.0, -2.0], "stop", text, None) for text in self.replies] for _ in requests]


def test_an_evaluation_keeps_canonical_answers_and_log_probabilities_only_if_votes_are_counted() -> None:
    params = SamplingParams(n=4, temperature=1.0)
    generator = Says(["12", " 012\n", "twelve", "13"])
    for votes, answers in ((True, ["12", "12", None, "13"]), (False, [None] * 4)):
        found = evaluate(generator, "families:add", count=2, params=params, votes=votes)  # type: ignore[arg-type]
        assert [one.answered for one in found.samples] == answers * 2
        assert {one.logprob for one in found.samples} == {-1.5}


@pytest.mark.parametrize("name", ["families", "everyday", "long", "gsm8k", "folio", "knights"])
def test_equal_canonical_answers_have_equal_grades(name: str) -> None:
    """Of replies that state the gold answer, the answer of another problem, or nothing that is an answer."""
    task = load_task(name)
    problems = list(itertools.islice(task.problems("test", 0), 24))
    replies = [
        text
        for problem in problems
        for text in (problem.answer, f" {problem.answer}\n", f"The answer is {problem.answer}")
    ]
    for problem in problems:
        grades: dict[str | None, set[Verdict]] = {}
        for reply in (*replies, "", "hm", f"{problem.answer} or 3"):
            grades.setdefault(task.canonical_answer(problem, reply), set()).add(task.grade(problem, reply))
        clear = {answer: found - {UNGRADED} for answer, found in grades.items() if answer is not None}
        assert all(len(found) <= 1 for found in clear.values()), (problem, clear)
        assert {RIGHT} in clear.values(), "the gold answer is an answer"


def test_a_task_without_comparable_answers_is_refused_before_anything_is_asked() -> None:
    class Own(Task):
        name = "own"

        def problems(self, split: Any, seed: int) -> Any:
            yield Problem(split, "?", "!", "f")

        def grade(self, problem: Problem, reply: str) -> Verdict:
            return RIGHT

    with pytest.raises(ConfigError, match="task 'own' does not say which replies give the same answer"):
        evaluate(Says(["x"]), Own(), count=1, votes=True)  # type: ignore[arg-type]
    assert evaluate(Says(["x"]), Own(), count=1).samples[0].verdict is RIGHT  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("votes=1", "temperature=1"), "votes=1 is a single sample"),
        (("votes=4",), "with temperature=0, all 4 samples of votes=4 are the same"),
        (("votes=4", "temperature=1", "samples=3"), "samples=3, votes=4 and best_of=0 contradict"),
        (("votes=4", "temperature=1", "best_of=3"), "samples=1, votes=4 and best_of=3 contradict"),
        (("best_of=1", "temperature=1"), "best_of=1 is a single sample"),
        (("best_of=4",), "with temperature=0, all 4 samples of best_of=4 are the same"),
        (("samples=4", "temperature=1", "stop_when=sure"), "stop_when=sure stops sampling for a majority"),
        (("votes=4", "temperature=1", "stop_when=sure", "verifier=x"), "stop_when=sure stops sampling for a majority"),
        (("samples=4", "temperature=1", "verifier=x"), "a verifier chooses among several samples"),
        (("votes=4", "temperature=1", "page=x.html"), "only a cascade has the key 'page'"),
    ],
)
def test_bad_votes_are_refused(words: tuple[str, ...], what: str, tmp_path: Path) -> None:
    assert what in output_of("eval", str(tmp_path), "task=families:add", *words, code=2).replace("\n", " ")
