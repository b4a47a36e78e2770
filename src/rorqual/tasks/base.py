"""A task: problems, a grader and optional worked solutions. Evaluation, filtering and reward use the same object."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

from rorqual.core.records import Message

Split = Literal["train", "dev", "test"]
"""`train` is for training, `dev` for choosing settings, and `test` is held out: choose nothing on it."""


class Verdict(Enum):
    """The result of grading. `UNGRADED` means that the grader failed or timed out, or that the gold answer is unusable.

    Ungraded samples are counted and never used for training.
    """

    RIGHT = "right"
    WRONG = "wrong"
    UNGRADED = "ungraded"


@dataclass(frozen=True)
class Problem:
    """One problem with a checkable answer.

    `key` is the canonical form: a+b and b+a share one key and count as one problem. The split is a hash of the key.
    `prompt` is never empty. `answer` is never empty in a training set.
    `steps` is a worked solution, the text between `<think>` and `</think>`, or None.
    `version` is the version of the family. Results of two versions are not comparable.
    """

    key: str
    prompt: str
    answer: str
    family: str
    level: str = ""
    steps: str | None = None
    meta: dict[str, Any] = field(default_factory=dict, compare=False)
    version: int = 1

    @property
    def messages(self) -> tuple[Message, ...]:
        """The messages of the prompt."""
        return (Message("user", self.prompt),)


class Task(ABC):
    """Problems with checkable answers. Subclass it in your own file: `rorqual train grpo task=./mine.py:Mine`."""

    name: str = "task"
    patience: float = 300.0
    """CPU seconds that `problems` may use for one problem. Beyond that a `TaskError` with the task's name stops the run."""
    patterned: bool = False
    """Whether problems share sentences. If so, a match of consecutive words is no evidence of contamination."""

    @property
    def versions(self) -> dict[str, int]:
        """The version of each family that the task samples, if families have versions. A run resumes only with the same versions."""
        return {}

    @abstractmethod
    def problems(self, split: Split, seed: int) -> Iterator[Problem]:
        """Yield the problems of `split` in an order fixed by `seed`. The same call yields the same problems; it may be endless."""

    @abstractmethod
    def grade(self, problem: Problem, reply: str) -> Verdict:
        """Grade `reply`, the text after `</think>`. Do not raise: an exception stops the training run and names the task."""

    def label(self, problem: Problem) -> str:
        """Return what the baselines guess: the answer, or a pattern that answers share if no two answers are equal."""
        return problem.answer


def split_of(key: str, *, dev: float = 0.02, test: float = 0.04) -> Split:
    """Return the split of a problem by a hash of its canonical form, so equivalent problems land in the same split."""
    point = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
    return "test" if point < test else "dev" if point < test + dev else "train"
