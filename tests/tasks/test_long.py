"""Long texts: answers found again by other code, lengths and depths as stated, splits that never share a problem."""

from __future__ import annotations

import re
from collections import Counter
from itertools import islice
from typing import Any

import pytest

from rorqual.core.errors import ConfigError
from rorqual.tasks.families import Families
from rorqual.tasks.find import check_gold
from rorqual.tasks.long_text import LongTextTask
from rorqual.tasks.task import Problem, Split, Verdict, split_of


def drawn(n: int = 60, split: Split = "train", seed: int = 0, **options: Any) -> list[Problem]:
    return list(islice(LongTextTask(**options).problems(split, seed), n))


def solve(prompt: str) -> str:
    """Answer from the prompt alone."""
    text, question = prompt.rsplit("\n", 1)
    if question == "copy":
        (number,) = re.findall(r"\[([0-9]+)\]", text)
        return str(number)
    pairs = dict(re.findall(r"\((.)(.)\)", text))
    return "".join(f"({key}{pairs[key]})" for key in question.removeprefix("needle "))


def test_answers_are_found_again_from_the_prompt() -> None:
    problems = drawn(names=["needle", "copy"], length=300, questions=8)
    assert Counter(problem.family for problem in problems) == {"needle": 30, "copy": 30}
    for problem in problems:
        assert solve(problem.prompt) == problem.answer and len(problem.prompt) == 300


def test_pairs_are_spread_over_the_text_and_answered_in_the_order_of_the_question() -> None:
    asked = set()
    for problem in drawn(names="needle", length=400, pairs=5, questions=3):
        text, question = problem.prompt.rsplit("\n", 1)
        found = list(re.finditer(r"\((.)(.)\)", text))
        assert [len(text) * i // 5 <= pair.start() < len(text) * (i + 1) // 5 for i, pair in enumerate(found)] == [
            True
        ] * 5
        assert len({pair[1] for pair in found}) == 5, "a key names one pair"
        keys = question.removeprefix("needle ")
        assert [pair[1] for pair in re.finditer(r"\((.)(.)\)", problem.answer)] == list(keys)
        assert set(re.findall(r"\(..\)", problem.answer)) <= {pair[0] for pair in found}
        assert found[round(5 * problem.meta["depth"])][1] == keys[-1]
        asked.add(len(keys))
    assert asked == {1, 2, 3}
    assert {len(p.prompt.rsplit(" ", 1)[1]) for p in drawn(names="needle")} == {1}, "one key unless more are wanted"


def test_a_family_follows_the_text_and_keeps_its_problems_and_splits() -> None:
    own = {problem.key: problem for problem in islice(Families(["swap"], 0.5).problems("test", 3), 200)}
    problems = drawn(20, "test", 3, names=["swap"], hard=0.5, length=150)
    for problem in problems:
        twin = own[problem.key]
        assert (problem.answer, problem.steps, problem.level) == (twin.answer, twin.steps, twin.level)
        assert problem.prompt.endswith(f"\n{twin.prompt}") and len(problem.prompt) == 150
        assert split_of(problem.key) == "test"
    assert {problem.level for problem in problems} == {"easy", "hard"}
    assert {problem.level for problem in drawn(20, names=["swap"])} == {"easy"}, "no hard problems by default"


def test_lengths_vary_between_the_shortest_and_the_longest() -> None:
    lengths = sorted(len(problem.prompt) for problem in drawn(400, length=800, shortest=100))
    assert 100 <= lengths[0] < 105 and 780 < lengths[-1] <= 800
    assert 250 < lengths[200] < 320, "half of the texts are shorter than the geometric mean, 283"


def test_gold_is_right_and_others_are_wrong() -> None:
    task = LongTextTask(length=128)
    problems = drawn(30, length=128)
    check_gold(task, problems)
    for problem in problems:
        assert task.grade(problem, f" {problem.answer}\n") is Verdict.RIGHT
        for reply in ("", problem.answer + "1", str(problem.steps)):
            assert task.grade(problem, reply) is Verdict.WRONG


@pytest.mark.parametrize(
    ("bad", "good", "part"),
    [
        ({"names": ["needles"]}, {"names": ["needle"]}, "needle"),
        ({"names": ["copy", "copy"]}, {"names": ["copy", "needle"]}, "once"),
        ({"names": []}, {"names": "copy"}, "once"),
        ({"questions": 9}, {"questions": 8}, "pairs"),
        ({"questions": 0}, {"questions": 1}, "questions"),
        ({"pairs": 63}, {"pairs": 62}, "62"),
        ({"names": ["needle"], "length": 40}, {"names": ["needle"], "length": 41}, "41"),
        ({"names": ["copy"], "length": 14}, {"names": ["copy"], "length": 15}, "15"),
        ({"names": ["count"], "length": 23}, {"names": ["count"], "length": 24}, "24"),
        ({"length": 100, "shortest": 101}, {"length": 100, "shortest": 100}, "100"),
    ],
)
def test_bad_options_are_refused_beside_their_nearest_valid_ones(
    bad: dict[str, Any], good: dict[str, Any], part: str
) -> None:
    assert drawn(1, **good)
    with pytest.raises(ConfigError, match=part):
        LongTextTask(**bad)
