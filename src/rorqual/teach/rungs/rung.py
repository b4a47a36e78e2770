"""The interface of rungs: `teach` fits each rung on training examples, and measures its answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from rorqual.teach.examples import AnswerKind, Example, canonical_answer

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Guess:
    """An answer, and how sure the rung is of it: an estimate between 0 and 1, which need not be calibrated."""

    answer: str
    probability: float
    reasoning: str = ""


@dataclass(frozen=True)
class TrainingRows:
    """The training examples of a task whose answers are of one kind.

    Answers with the same canonical form are one class. Its answer is written as in the first example of the class.
    """

    examples: Sequence[Example]
    kind: AnswerKind

    @property
    def prompts(self) -> list[str]:
        """The prompt of each example."""
        return [one.prompt for one in self.examples]

    @cached_property
    def answers(self) -> list[str]:
        """The answer of each class, in the order of first appearance."""
        return list(self._spelling.values())

    @cached_property
    def classes(self) -> Integers:
        """The class of each example [examples]."""
        number = {form: place for place, form in enumerate(self._spelling)}
        return np.array([number[canonical_answer(one, self.kind)] for one in self.examples])

    @cached_property
    def _spelling(self) -> dict[str, str]:
        spelling: dict[str, str] = {}
        for one in self.examples:
            spelling.setdefault(canonical_answer(one, self.kind), one.answer)
        return spelling


class Predictor(ABC):
    """A method of answering prompts. `name` is its name in tables and files."""

    name: str

    @abstractmethod
    def predict(self, prompts: Sequence[str]) -> list[Guess]:
        """Return a guess for each prompt. It does not depend on the other prompts."""


class Rung(Predictor):
    """A method that learns from training examples in one call. `slow` says whether that takes longer than some seconds."""

    slow = False

    def settle(self, rows: TrainingRows) -> None:
        """Choose the settings of all later fits by cross-validation on training examples. Probabilities of fits with different settings
        could not be compared. A rung without such settings does nothing."""

    @abstractmethod
    def fit(self, rows: TrainingRows) -> None:
        """Learn from training examples. A second call forgets the first."""
