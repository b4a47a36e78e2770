"""Everyday chores: truths by another way than their writers, faults as said and counted from outside, splits that never meet."""

from __future__ import annotations

import random
import re
from itertools import islice

import pytest

from rorqual.core.errors import ConfigError
from rorqual.tasks.everyday import EVERYDAY_TASKS, EverydayMixture, EverydayTask, price_of
from rorqual.tasks.find import check_gold, load_task
from rorqual.tasks.task import Problem, Split, Verdict

EACH = pytest.mark.parametrize("chore", EVERYDAY_TASKS.values(), ids=EVERYDAY_TASKS)
BAD_WORDS = ["bad", "dull", "cold", "silly", "ugly", "bleak"]
PARTICIPLES = {"seen": "see", "found": "find", "liked": "like", "helped": "help", "led": "lead", "heard": "hear"}


def drawn(chore: EverydayTask, n: int, seed: int = 0) -> list[Problem]:
    rng = random.Random(seed)
    return [chore.with_noisy_answer(chore.sample(rng)) for _ in range(n)]


# Independent solvers: from the question alone.


def judge_review(question: str) -> str:
    opinions = question.split(": ")[1].split(", ")
    bad = sum(("not" in words) != (words[-1] in BAD_WORDS) for words in map(str.split, opinions))
    return "negative" if 2 * bad > len(opinions) else "positive"


def estimate(question: str) -> str:
    rooms, age, garden, floor = map(int, re.findall(r"\d+", question))
    return str(3 * (6 + 2 * rooms) + 2 * (garden - age) + floor)


def facts_in(sentence: str) -> str:
    """A right sentence read back into its question."""
    words = sentence.split()
    passive = "by" in words
    if passive:
        place = words.index("by")
        acted_on, verb, agent = words[: place - 2], PARTICIPLES[words[place - 1]], words[place + 1 :]
        assert words[place - 2] == ("is" if acted_on[0] in ("a", "an") else "are")
    else:
        agent, written, acted_on = words[:2], words[2], words[3:]
        verb = written.removesuffix("s") if agent[0] in ("a", "an") else written
        assert agent[0] not in ("a", "an") or written.endswith("s")

    def fact(phrase: list[str]) -> str:
        number, noun = phrase
        count = {"a": 1, "an": 1, "two": 2, "three": 3, "four": 4}[number]
        assert count > 1 or (number == "an") == (noun[0] in "aeiou")
        assert (count > 1) == noun.endswith("s")
        return f"{noun.removesuffix('s')} {count}"

    return f"sentences: {fact(agent)}, {verb}, {fact(acted_on)}"


def test_truths_agree_with_solvers_of_another_kind() -> None:
    for solver, name in ((judge_review, "reviews"), (estimate, "prices")):
        for problem in drawn(EVERYDAY_TASKS[name], 400):
            assert solver(problem.prompt) == problem.answer
    for problem in drawn(EVERYDAY_TASKS["sentences"], 400):
        assert facts_in(problem.answer) == problem.prompt


@EACH
def test_gold_is_right_and_replies_that_are_no_answer_are_wrong(chore: EverydayTask) -> None:
    task = EverydayMixture([chore.name])
    check_gold(task, list(islice(task.problems("train", 3), 50)))
    for problem in drawn(chore, 20):
        for reply in ("", "\n", "positive negative", "x" * 2000, problem.prompt, f"{problem.answer} {problem.answer}"):
            assert task.grade(problem, reply) is Verdict.WRONG
        assert task.grade(problem, f" {problem.answer}\n") is Verdict.RIGHT


# Faults of the originals, counted from outside.


def test_three_sentences_in_ten_are_faulty_and_no_fault_is_right() -> None:
    problems = drawn(EVERYDAY_TASKS["sentences"], 3000)
    faulty = [p for p in problems if p.meta["original"] != p.answer]
    assert len(faulty) / len(problems) == pytest.approx(0.3, abs=0.03)
    assert all(EVERYDAY_TASKS["sentences"].grade(p, p.meta["original"]) is Verdict.WRONG for p in faulty)
    for p in faulty:
        assert abs(len(p.meta["original"].split()) - len(p.answer.split())) <= 1


@EACH
def test_the_world_errs_the_same_way_when_asked_twice(chore: EverydayTask) -> None:
    assert [p.meta["original"] for p in drawn(chore, 50)] == [p.meta["original"] for p in drawn(chore, 50)]


# Splits and pools.


def keys(split: Split, pool: str, seed: int) -> set[str]:
    task = load_task("everyday", options={"pool": pool})
    return {problem.key for problem in islice(task.problems(split, seed), 600)}


def test_splits_and_pools_never_share_a_problem_whatever_the_seed() -> None:
    parts = [keys("train", "teacher", 0), keys("train", "original", 1), keys("dev", "any", 2), keys("test", "any", 3)]
    for i, one in enumerate(parts):
        assert len(one) == 600 or i == 2  # dev holds 450 prices
        assert all(not one & other for other in parts[:i])
    assert keys("train", "teacher", 0) == parts[0]
    assert keys("train", "teacher", 5) != parts[0]


@pytest.mark.parametrize(
    "options", [{"names": ["review"]}, {"names": []}, {"names": ["prices", "prices"]}, {"pool": "mine"}]
)
def test_unknown_names_and_pools_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="everyday"):
        load_task("everyday", options=options)


# The parser of prices.


@pytest.mark.parametrize(
    "reply", ["-3", "+3", "3.5", "1,200", "1e3", "12 34", "about 40", "٣", "²", "100", "12345", ""]
)
def test_what_is_no_price_is_not_guessed(reply: str) -> None:
    assert price_of(reply) is None
