"""A family: generated problems with a difficulty knob and a writer of steps, each step a local function of what is written."""

from __future__ import annotations

import random
import re
from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from rorqual.tasks.base import Problem, Verdict

FamilyKind = Literal["arithmetic", "algorithm", "text", "logic"]
INTEGER = re.compile(r"-?[0-9]+")


class Family(ABC):
    """Problems of one sort. The text after the last `=` of the steps is the answer: to answer after thinking is to copy."""

    name: ClassVar[str]
    kind: ClassVar[FamilyKind]
    easy: ClassVar[range]
    hard: ClassVar[range]
    numeric: ClassVar[bool] = True
    version: ClassVar[int]
    """Raised when its problems change: results of two versions are not compared. Version 2 of each: a level's difficulties do not run out
    one after the other (`ENOUGH` in mixture.py); what else changed stands in the family's docstring."""

    @abstractmethod
    def sample(self, rng: random.Random, difficulty: int) -> Problem:
        """A problem of `difficulty`, a number in `easy` or `hard`, with its steps."""

    @abstractmethod
    def size(self, difficulty: int) -> int:
        """How many distinct keys `sample(_, difficulty)` can give, or a lower bound of it."""

    def level(self, difficulty: int) -> str:
        return "hard" if difficulty in self.hard else "easy"

    def problem(self, difficulty: int, *, key: str, prompt: str, steps: str, answer: str) -> Problem:
        """The record, with the family's name as the first word of key and prompt."""
        return Problem(
            key=f"{self.name} {key}",
            prompt=f"{self.name} {prompt}",
            answer=answer,
            family=self.name,
            level=self.level(difficulty),
            steps=steps,
            meta={"difficulty": difficulty},
            version=self.version,
        )

    def grade(self, problem: Problem, reply: str) -> Verdict:
        """Exact: numbers as integers, text letter by letter; only white space around the reply is forgiven."""
        text = reply.strip()
        if self.numeric:
            right = INTEGER.fullmatch(text) is not None and len(text) < 100 and int(text) == int(problem.answer)
        else:
            right = text == problem.answer
        return Verdict.RIGHT if right else Verdict.WRONG
