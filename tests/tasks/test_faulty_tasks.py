"""A generator that yields too little, or what is no problem, ends in an error that names the task."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from rorqual.core.errors import DataError, RorqualError, TaskError
from rorqual.tasks.find import safe_problems
from rorqual.tasks.task import Problem, Split, Task, Verdict
from rorqual.train.sources.worked import endless_problems, first_problems


class Made(Task):
    """A task whose generator is given."""

    name = "made"

    def __init__(self, how: str) -> None:
        self.how = how

    def problems(self, split: Split, seed: int) -> Iterator[Problem]:
        numbers = itertools.count(seed * 100)
        match self.how:
            case "none":
                return
            case "none after the first pass" if seed:
                return
            case "one again and again":
                yield from itertools.repeat(problem(seed)) if split == "train" else ()
            case _:
                yield from (problem(n) for n in itertools.islice(numbers, 3))

    def grade(self, problem: Problem, reply: str) -> Verdict:
        return Verdict.RIGHT


def problem(n: int, **changes: object) -> Problem:
    return Problem(**({"key": str(n), "prompt": f"{n}?", "answer": str(n), "family": "f"} | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("none", "task made: the train split is empty"),
        ("one again and again", "task made: the first 64 problems of the train split are all the same: '0'"),
    ],
)
def test_a_generator_that_gives_too_little_is_named(how: str, said: str) -> None:
    with pytest.raises(RorqualError, match=said):
        first_problems(Made(how), 0, 64)


def test_few_problems_begin_again_and_none_end() -> None:
    assert [p.key for p in itertools.islice(endless_problems(Made("few"), 0), 5)][:3] == ["0", "1", "2"]
    with pytest.raises(DataError, match="task made: the train split is empty for seed 7919"):
        list(itertools.islice(endless_problems(Made("none after the first pass"), 0), 5))


class Wrong(Made):
    """Its second problem has a fault."""

    def __init__(self, **changes: object) -> None:
        self.changes = changes

    def problems(self, split: Split, seed: int) -> Iterator[Problem]:
        yield problem(1)
        yield problem(2, **self.changes)


@pytest.mark.parametrize("key", ["key", "prompt", "answer", "family", "level", "steps"])
def test_a_field_of_another_type_is_named(key: str) -> None:
    with pytest.raises(TaskError, match=f"task made: `{key}` of the problem .* not a string"):
        list(safe_problems(Wrong(**{key: ["a"]}), "train", 0))


def test_an_empty_prompt_and_to_learn_from_an_empty_answer_are_named() -> None:
    for text in ("", " \n", "\u3000"):
        with pytest.raises(TaskError, match="file:3: the problem '2' has an empty prompt"):
            list(safe_problems(Wrong(prompt=text, meta={"where": "file:3"}), "train", 0))
        wrong = Wrong(answer=text)
        assert len(list(safe_problems(wrong, "test", 0))) == 2, "an evaluation counts it as ungraded"
        for learn in (
            lambda wrong=wrong: first_problems(wrong, 0, 9),
            lambda wrong=wrong: list(itertools.islice(endless_problems(wrong, 0), 4)),
        ):
            with pytest.raises(DataError, match="task made: the problem '2' has an empty answer"):
                learn()
