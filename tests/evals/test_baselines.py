"""Baselines are measured: fitted on the train split of a family and level, and judged on the problems of the evaluation."""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from math import isnan
from typing import Any, ClassVar

import pytest

from rorqual.core.errors import DataError
from rorqual.engine.request import Completion
from rorqual.evals.baselines import RULES, UNIFORM, baseline_accuracies, rule_scores
from rorqual.evals.compare import compare_pair
from rorqual.evals.evaluating import evaluate, pick_problems
from rorqual.evals.evaluation import Evaluation
from rorqual.evals.table import table
from rorqual.tasks.families import FAMILIES, NAMES, Families
from rorqual.tasks.task import Problem, Split, Task, Verdict


class Made(Task):
    """Problems that `make` gives from (split, generator): exact answers, no end."""

    name = "made"

    def __init__(self, make: Callable[[Split, random.Random], Problem]) -> None:
        self.make = make
        self.asked: list[tuple[str, int]] = []

    def problems(self, split: Split, seed: int) -> Iterator[Problem]:
        self.asked.append((split, seed))
        rng = random.Random(f"{split} {seed}")
        while True:
            yield self.make(split, rng)

    def grade(self, problem: Problem, reply: str) -> Verdict:
        return Verdict.RIGHT if reply == problem.answer else Verdict.WRONG


def measured(task: Task, count: int = 400, **more: Any) -> dict[str, dict[str, float]]:
    return baseline_accuracies(task, pick_problems(task, "test", count, 0, True), 0, **more)


def words(rng: random.Random, count: int) -> str:
    return " ".join("".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 9))) for _ in range(count))


# Leaks.


def by_length(split: Split, rng: random.Random) -> Problem:
    text = "".join(rng.choices(string.ascii_lowercase, k=rng.randint(5, 12)))
    return Problem(f"{text} {rng.random()}", text, str(len(text)), "poison", "1")


def by_luck(split: Split, rng: random.Random) -> Problem:
    text = "".join(rng.choices(string.ascii_lowercase, k=rng.randint(5, 12)))
    return Problem(f"{text} {rng.random()}", text, str(rng.randint(5, 12)), "clean", "1")


def by_parity(split: Split, rng: random.Random) -> Problem:
    number = rng.randint(1000, 9999)
    return Problem(f"{number} {rng.random()}", f"is {number}", ("even", "odd")[number % 2], "parity", "1")


def test_a_family_whose_answer_is_its_prompts_length_is_found_and_its_clean_twin_passes() -> None:
    (poison,) = (measured(Made(by_length))[name] for name in ("poison/1",))
    assert poison["length"] == 1.0 and poison["tree"] > 0.8 and poison["majority"] < 0.25
    assert poison[UNIFORM] == 1 / 8
    assert max(measured(Made(by_luck), 1000, fit=1000)["clean/1"].values()) < 1 / 8 + 0.05
    parity = measured(Made(by_parity))["parity/1"]
    assert parity["tree"] == 1.0 and parity["majority"] < 0.6 and parity["length"] < 0.6


class RandomLetters:
    """`count` as it was in version 1."""

    @staticmethod
    def make(split: Split, rng: random.Random) -> Problem:
        length, letter = rng.randint(7, 11), rng.choice(string.ascii_lowercase)
        count = rng.randint(0, length)
        text = [letter] * count + rng.choices(string.ascii_lowercase.replace(letter, ""), k=length - count)
        rng.shuffle(text)
        question = f"count {letter}:{''.join(text)}"
        return Problem(question, question, str(count), "count", "hard")


def over(shares: dict[str, float]) -> float:
    return max(shares[rule] for rule in RULES) - shares[UNIFORM]


def test_counting_among_random_letters_gives_itself_away_and_among_a_fixed_number_does_not() -> None:
    assert over(measured(Made(RandomLetters.make), 600, fit=1000)["count/hard"]) > 0.15
    assert over(measured(Families(("count",), hard=1.0), 600, fit=1000)["count/hard"]) < 0.1


@pytest.mark.parametrize("name", NAMES)
def test_hard_problems_give_at_most_ten_points_over_uniform_guessing(name: str) -> None:
    """Seeds are fixed and the shares some points below the limit (benchmarks/baselines.py), so that nothing here is left to luck."""
    task = Families((name,), hard=1.0)
    train, asked = (list(islice(task.problems("train", seed), 1000)) for seed in (0, 1))
    known = {problem.key for problem in train}
    found = rule_scores(task, train, [problem for problem in asked if problem.key not in known])
    assert over({rule: sum(values) / len(values) for rule, values in found.items()}) < 0.1


# What is fitted on what.


def test_rules_are_fitted_on_the_train_split_and_judged_on_what_is_asked() -> None:
    def make(split: Split, rng: random.Random) -> Problem:
        text = words(rng, 2)
        return Problem(f"{split} {text}", text, split, "f", "1")

    task = Made(make)
    problems = pick_problems(task, "test", 50, 0, True)
    task.asked.clear()
    assert baseline_accuracies(task, problems, 7) == {
        name: {UNIFORM: 1.0, "majority": 0.0, "length": 0.0, "tree": 0.0} for name in ("all", "f", "f/1")
    }
    assert task.asked == [("train", 7)]


def test_what_is_asked_is_not_fitted_on() -> None:
    """Prompts of lengths of their own: a rule that saw them knows each answer."""

    class Finite(Made):
        def problems(self, split: Split, seed: int) -> Iterator[Problem]:
            rng = random.Random(0)
            return iter([Problem(str(n), "x" * (n + 1), str(rng.randrange(40)), "f", "1") for n in range(60)])

    task = Finite(by_luck)
    assert baseline_accuracies(task, list(islice(task.problems("train", 0), 30)), 0)["all"]["length"] < 0.3
    assert baseline_accuracies(task, list(task.problems("train", 0)), 0) == {}  # nothing is left to fit on


def test_each_level_has_rules_of_its_own_and_pools_are_means_over_problems() -> None:
    def make(split: Split, rng: random.Random) -> Problem:
        family, level = rng.choice((("a", "1"), ("a", "2"), ("a", "2"), ("b", "1")))
        text = words(rng, 1)
        answer = {"a1": "yes", "a2": "no", "b1": str(rng.randrange(2))}[family + level]
        return Problem(f"{split} {family} {level} {text} {rng.random()}", text, answer, family, level)

    task = Made(make)
    problems = pick_problems(task, "test", 200, 0, False)
    found = baseline_accuracies(task, problems, 0)
    assert set(found) == {"a/1", "a/2", "a", "b/1", "b", "all"}
    assert found["a/1"]["majority"] == found["a/2"]["majority"] == found["a"]["majority"] == 1.0
    assert found["b/1"][UNIFORM] == 0.5 and found["b"] == found["b/1"]
    share = sum(problem.family == "a" for problem in problems) / len(problems)
    for rule in (*RULES, UNIFORM):
        assert found["all"][rule] == pytest.approx(share + (1 - share) * found["b"][rule])


def test_a_task_without_a_train_split_has_no_baseline() -> None:
    class Held(Made):
        def problems(self, split: Split, seed: int) -> Iterator[Problem]:
            if split == "train":
                raise DataError("no such file")
            return super().problems(split, seed)

    found = evaluate(Says("1"), Held(by_luck), count=5)
    assert found.baselines == {} and isnan(found.rows("all")[0].best_baseline[1]) and " -  " in table(found)


def test_guesses_are_graded_as_replies_are() -> None:
    class Lenient(Made):
        def grade(self, problem: Problem, reply: str) -> Verdict:
            return Verdict.RIGHT if abs(int(reply) - int(problem.answer)) <= 2 else Verdict.WRONG

    exact, lenient = (measured(kind(by_luck), 300)["clean/1"]["majority"] for kind in (Made, Lenient))
    assert exact < 0.25 < lenient


# What an evaluation says of it.


class Says:
    def __init__(self, text: str) -> None:
        self.text = text

    def generate(self, requests: Sequence[Any], *, progress: Any = None) -> list[list[Completion]]:
        return [[Completion((1,), [1], [0.0], "stop", self.text, None)] for _ in requests]


def test_an_evaluation_measures_with_its_seed_and_names_the_best_baseline() -> None:
    task = Made(by_length)
    found = evaluate(Says("7"), task, count=40, seed=3)
    assert found.baselines == baseline_accuracies(task, pick_problems(task, "test", 40, 3, False), 3)
    assert ("train", 3) in task.asked
    (row,) = found.rows("all")
    assert row.best_baseline == ("length", 1.0) and "100.0 (length)" in table(found) and "chance" not in table(found)


class Counted(Families):
    """The families as an older Rorqual drew them."""

    old: ClassVar[int] = 1

    def problems(self, split: Split, seed: int) -> Iterator[Problem]:
        for p in super().problems(split, seed):
            yield Problem(p.key, p.prompt, p.answer, p.family, p.level, p.steps, p.meta, self.old)


def test_versions_are_recorded_and_evaluations_of_two_are_not_compared() -> None:
    def evaluated(task: Task) -> Evaluation:
        return evaluate(Says("1"), task, problems=pick_problems(task, "test", 6, 0, False), measured={})

    new, old = evaluated(Families(("count", "kk"))), evaluated(Counted(("count", "kk")))
    assert new.versions == {family.name: family.version for family in FAMILIES if family.name in ("count", "kk")}
    assert old.versions == {"count": 1, "kk": 1} and new.problem_keys == old.problem_keys
    for one, other in ((old, new), (new, old)):
        with pytest.raises(
            DataError, match=r"has version [12] of the problems of '(count|kk)', the other has version [12]"
        ):
            compare_pair(one, other)
    assert compare_pair(old, old) and compare_pair(new, new)
    with pytest.raises(DataError, match="different problems"):  # a family that only one has is of no version there
        compare_pair(new, evaluated(Families(("count",))))
