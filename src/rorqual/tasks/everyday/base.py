"""A chore: problems with a truth that a rule gives, and an original answer as a data set of the world would hold it, faults included."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import ClassVar, Literal

from rorqual.tasks.base import Problem, Verdict

ORIGINAL = "original"
"""The key of `Problem.meta` that holds the original answer; `Problem.answer` is always true."""

Form = Literal["classification", "regression", "generation"]


class Chore(ABC):
    """Problems of one sort. `noise` says how faulty the originals are, in words; `corrupt` makes the faults."""

    name: ClassVar[str]
    form: ClassVar[Form]
    noise: ClassVar[str]

    @abstractmethod
    def sample(self, rng: random.Random) -> Problem:
        """A problem with its true answer."""

    @abstractmethod
    def corrupt(self, problem: Problem, rng: random.Random) -> str:
        """The answer of an original data set: faulty as often, or as much, as `noise` says."""

    @abstractmethod
    def grade(self, problem: Problem, reply: str) -> Verdict:
        """Judge against the truth. A reply in no form of an answer is wrong: the grader never fails."""

    def primer(self, problem: Problem) -> tuple[str, str] | None:
        """What a base model knows before it meets the chore: a question about the words of `problem`, and its answer; None: nothing."""
        return None

    def problem(self, key: str, prompt: str, answer: str) -> Problem:
        """The record, with the chore's name as the first word of key and prompt."""
        return Problem(key=f"{self.name} {key}", prompt=f"{self.name}: {prompt}", answer=answer, family=self.name)

    def with_original(self, problem: Problem) -> Problem:
        """The problem with its original answer, which depends on the problem alone: asked twice, the world errs the same way."""
        original = self.corrupt(problem, random.Random(f"{problem.key} {problem.answer} original"))
        return replace(problem, meta={ORIGINAL: original})
