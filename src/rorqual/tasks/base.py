"""A task: problems, a grader, and, where it has them, worked solutions. The same object evaluates, filters and rewards."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

from rorqual.core.records import Message

Split = Literal["train", "dev", "test"]
"""`train` to learn from, `dev` to choose settings on, `test` held out: nothing is chosen on it."""


class Verdict(Enum):
    """What a grader says. `UNGRADED` (it failed, timed out, or the gold answer is unusable) never trains and is counted."""

    RIGHT = "right"
    WRONG = "wrong"
    UNGRADED = "ungraded"


@dataclass(frozen=True)
class Problem:
    """One problem with a checkable answer.

    `key` is the canonical form (a+b and b+a share it): equal keys are one problem, and the split is a hash of it.
    `prompt` is never empty; to learn from, nor is `answer`. `steps` is a worked solution, the text that belongs between `<think>` and
    `</think>`; None where there is none. `version`: of the family; results of two versions are not compared.
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
        """What the model is asked."""
        return (Message("user", self.prompt),)


class Task(ABC):
    """Problems with checkable answers. Subclass it in one file of your own: `rorqual train grpo task=./mine.py:Mine`."""

    name: str = "task"
    patience: float = 300.0
    """Processor seconds that `problems` may take for one problem before a run is stopped by the task's name."""
    patterned: bool = False
    """Whether its problems share their sentences, so that words in a row do not give one of them away."""

    @property
    def versions(self) -> dict[str, int]:
        """The version of each family that the task draws from, where it has versions: a run is not resumed on other problems."""
        return {}

    @abstractmethod
    def problems(self, split: Split, seed: int) -> Iterator[Problem]:
        """Problems of `split`, in an order fixed by `seed`: the same call gives the same problems. May never end."""

    @abstractmethod
    def grade(self, problem: Problem, reply: str) -> Verdict:
        """Judge `reply`, the text after `</think>`. It should not raise: what it raises stops a training run by name."""

    def label(self, problem: Problem) -> str:
        """What baselines guess: the answer, or what the answers of problems have in common, where no two are alike."""
        return problem.answer


def split_of(key: str, *, dev: float = 0.02, test: float = 0.04) -> Split:
    """The split of a problem: a hash of its canonical form, so that twins never fall on both sides."""
    point = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
    return "test" if point < test else "dev" if point < test + dev else "train"
