"""Base class of the everyday tasks. A rule computes the true answers. Noisy answers are true answers with random
errors."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import ClassVar, Literal

from rorqual.tasks.task import Problem, Verdict

ORIGINAL = "original"
"""Key of the noisy answer in `Problem.meta`. A noisy answer imitates the errors of real data. `Problem.answer` is
always the true answer."""

Form = Literal["classification", "regression", "generation"]


class EverydayTask(ABC):
    """A generator of problems of one kind. `corrupt` produces the noisy answers."""

    name: ClassVar[str]
    form: ClassVar[Form]

    @abstractmethod
    def sample(self, rng: random.Random) -> Problem:
        """Return a random problem with its true answer."""

    @abstractmethod
    def corrupt(self, problem: Problem, rng: random.Random) -> str:
        """Return the noisy answer: the true answer with random errors."""

    @abstractmethod
    def grade(self, problem: Problem, reply: str) -> Verdict:
        """Grade `reply` against the true answer. A reply in the wrong format is wrong, never ungraded."""

    def canonical_answer(self, problem: Problem, reply: str) -> str | None:
        """See `Task.canonical_answer`."""
        return reply.strip() or None

    def vocabulary_question(self, problem: Problem) -> tuple[str, str] | None:
        """Return a vocabulary question about `problem` and the answer to this question, to train a base model. Return None if
        the everyday task has no vocabulary questions."""
        return None

    def problem(self, key: str, prompt: str, answer: str) -> Problem:
        """Return a `Problem` whose key and prompt start with the everyday task's name."""
        return Problem(key=f"{self.name} {key}", prompt=f"{self.name}: {prompt}", answer=answer, family=self.name)

    def with_noisy_answer(self, problem: Problem) -> Problem:
        """Return `problem` with its noisy answer in `meta`. A problem always gets the same noisy answer."""
        original = self.corrupt(problem, random.Random(f"{problem.key} {problem.answer} original"))
        return replace(problem, meta={ORIGINAL: original})
