"""The task of one's own that docs/how-to/teach.md teaches: short and honest."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from rorqual.tasks.find import check_gold, load_task
from rorqual.tasks.task import Task, Verdict

ROOT = Path(__file__).parents[2]
FILE = ROOT / "examples" / "orders.py"


@pytest.fixture
def task() -> Task:
    return load_task(f"{FILE}:Orders")


def test_it_has_under_forty_lines_and_is_named_by_the_page() -> None:
    assert FILE.read_text(encoding="utf-8").count("\n") < 40
    assert "(../../examples/orders.py)" in (ROOT / "docs/how-to/teach.md").read_text(encoding="utf-8")


def test_worked_solutions_are_true_and_end_in_the_answer(task: Task) -> None:
    problems = list(itertools.islice(task.problems("train", 0), 300))
    check_gold(task, problems)
    for problem in problems:
        lines = [tuple(map(int, pair)) for pair in re.findall(r"(\d+) \w+ at \$(\d+)", problem.prompt)]
        assert problem.answer == f"${sum(count * price for count, price in lines)}"
        assert problem.steps is not None
        for step in problem.steps.split("\n"):
            a, sign, b, said = re.fullmatch(r"(\d+) ([*+]) (\d+) = (\d+)", step).groups()  # type: ignore[union-attr]
            assert int(said) == (int(a) * int(b) if sign == "*" else int(a) + int(b))
        assert problem.steps.endswith(f"= {problem.answer[1:]}")


def test_a_right_sum_is_right_however_it_is_said(task: Task) -> None:
    problem = next(task.problems("dev", 0))
    wrong = f"${int(problem.answer[1:]) + 1}"
    for reply in ("{}", "In all it is {}.", "The answer is {}, I think.", "First 2 * 3 = 6.\nSo **{}.00**"):
        assert task.grade(problem, reply.format(problem.answer)) is Verdict.RIGHT
        assert task.grade(problem, reply.format(wrong)) is Verdict.WRONG
    assert task.grade(problem, "I cannot say.") is Verdict.WRONG


def test_the_order_of_the_lines_makes_no_new_problem(task: Task) -> None:
    keys = {
        split: {p.key for p in itertools.islice(task.problems(split, 3), 400)}  # type: ignore[arg-type]
        for split in ("train", "dev", "test")
    }
    assert not keys["train"] & keys["test"] and not keys["train"] & keys["dev"] and not keys["dev"] & keys["test"]
    assert all(key.split() == sorted(key.split()) for key in keys["test"])
