"""Base class of problem families. A family generates problems of a given difficulty, with steps that depend only on earlier text."""

from __future__ import annotations

import random
import re
from abc import ABC, abstractmethod
from typing import ClassVar

from rorqual.tasks.task import Problem, Verdict

INTEGER = re.compile(r"-?[0-9]+")
FORMS = ("{name} {question}", "{question}", "What is {question}?")
"""The forms of plain calculations. All other problems have the first form."""


class Family(ABC):
    """A generator of problems of one kind. The steps of a problem end with `=` and the answer. A model that has written the
    steps only copies the answer."""

    name: ClassVar[str]
    easy: ClassVar[range]
    hard: ClassVar[range]
    plain: ClassVar[int] = 0
    """The difficulty of plain problems: the small numbers and short words that a user types first."""
    numeric: ClassVar[bool] = True
    version: ClassVar[int] = 2
    """Increase `version` when the problems change, because results of different versions are not comparable.

    Version 2 of every family keeps the shares of difficulties constant (`ENOUGH` in mixture.py). The docstring of a
    family describes further changes between versions.
    """

    @abstractmethod
    def sample(self, rng: random.Random, difficulty: int) -> Problem:
        """Return a random problem with its steps. `difficulty` is `plain` or a number in `easy` or `hard`."""

    @abstractmethod
    def count_keys(self, difficulty: int) -> int:
        """Return the number of distinct keys of `sample(_, difficulty)`, or a lower bound."""

    def level(self, difficulty: int) -> str:
        """Return the level to which a difficulty belongs: "hard", "easy", or "plain" for difficulty 0."""
        return "hard" if difficulty in self.hard else "easy" if difficulty else "plain"

    def problem(
        self, difficulty: int, *, key: str, prompt: str, steps: str, answer: str, form: str = FORMS[0]
    ) -> Problem:
        """Return a `Problem` whose key starts with the family's name. `form` adds words to `prompt`, by default the family's name."""
        return Problem(
            key=f"{self.name} {key}",
            prompt=form.format(name=self.name, question=prompt),
            answer=answer,
            family=self.name,
            level=self.level(difficulty),
            steps=steps,
            meta={"difficulty": difficulty},
            version=self.version,
        )

    def grade(self, problem: Problem, reply: str) -> Verdict:
        """Grade `reply` by exact match: compare numbers as integers and text by character. White space around the reply is
        ignored."""
        answer = self.canonical_answer(problem, reply)
        same = answer == problem.answer or (self.numeric and answer is not None and int(answer) == int(problem.answer))
        return Verdict.RIGHT if same else Verdict.WRONG

    def canonical_answer(self, problem: Problem, reply: str) -> str | None:
        """See `Task.canonical_answer`. If the gold answer is a number, a reply that is not an integer has no canonical
        answer."""
        text = reply.strip()
        if not self.numeric:
            return text or None
        return str(int(text)) if INTEGER.fullmatch(text) is not None and len(text) < 100 else None


def random_number(rng: random.Random, digits: int) -> int:
    """Return a random number of `digits` digits. With `digits=0`, return a number for a plain problem.

    A number for a plain problem has one to four digits. Shorter numbers are more frequent, and a fifth of the numbers are round, as
    40 or 100.
    """
    if digits:
        return rng.randint(10 ** (digits - 1), 10**digits - 1)
    longest = rng.choices((1, 2, 3, 4), (5, 4, 2, 1))[0]
    number = rng.randrange(10**longest)
    return number - number % 10 ** (longest - 1) if rng.random() < 0.2 else number


def random_form(rng: random.Random, difficulty: int) -> tuple[str, str]:
    """Return the form of a calculation, and the text on both sides of its operator. Only plain problems vary in form."""
    return (FORMS[0], "") if difficulty else (rng.choice(FORMS), rng.choice(("", " ")))
