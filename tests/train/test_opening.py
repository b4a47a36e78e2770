"""A task that every step would read from its same beginning is refused; one that shuffles, or is small, is not."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from rorqual.core.errors import DataError, TaskError
from rorqual.tasks.base import Problem, Split, Task, Verdict
from rorqual.train.sources.worked import opening


class Rows(Task):
    """`total` problems, shuffled by the seed or not; raises at the end if asked to."""

    name = "rows"

    def __init__(self, total: int, *, shuffled: bool, raises: bool = False) -> None:
        self.total, self.shuffled, self.raises = total, shuffled, raises

    def problems(self, split: Split, seed: int) -> Iterator[Problem]:
        numbers = list(range(self.total))
        if self.shuffled:
            random.Random(seed).shuffle(numbers)
        for n in numbers:
            yield Problem(key=str(n), prompt=str(n), answer=str(n), family="rows")
        if self.raises:
            raise KeyError("row")

    def grade(self, problem: Problem, reply: str) -> Verdict:
        return Verdict.RIGHT if reply == problem.answer else Verdict.WRONG


def test_an_order_that_ignores_the_seed_is_refused() -> None:
    with pytest.raises(DataError, match="same for every seed"):
        opening(Rows(100, shuffled=False), 0, 64)


@pytest.mark.parametrize("task", [Rows(100, shuffled=True), Rows(10, shuffled=False)])
def test_its_twins_are_not(task: Rows) -> None:
    assert len(opening(task, 0, 64)) == min(64, task.total)


def test_a_generator_that_raises_is_named() -> None:
    with pytest.raises(TaskError, match=r"rows.*KeyError"):
        opening(Rows(10, shuffled=True, raises=True), 0, 64)
