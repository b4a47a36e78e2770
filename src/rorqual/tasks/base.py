"""A task: problems, a grader, and, where it has them, worked solutions. The same object evaluates, filters and rewards."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
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
    `</think>`; None where there is none.
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

    @abstractmethod
    def problems(self, split: Split, seed: int) -> Iterator[Problem]:
        """Problems of `split`, in an order fixed by `seed`: the same call gives the same problems. May never end."""

    @abstractmethod
    def grade(self, problem: Problem, reply: str) -> Verdict:
        """Judge `reply`, the text after `</think>`. It should not raise: what it raises stops a training run by name."""

    def chance(self, problem: Problem) -> float:
        """Probability that a guesser who knows the form of the answers is right; the chance line of reports."""
        return 0.0

    def baselines(self, problems: Sequence[Problem]) -> dict[str, float]:
        """What needs no model: the mean chance, and always the answer that is most frequent among `problems`."""
        if not problems:
            return {}
        most = Counter(problem.answer for problem in problems).most_common(1)[0][1]
        return {
            "chance": sum(map(self.chance, problems)) / len(problems),
            "majority class": most / len(problems),
        }


def split_of(key: str, *, dev: float = 0.02, test: float = 0.04) -> Split:
    """The split of a problem: a hash of its canonical form, so that twins never fall on both sides."""
    point = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
    return "test" if point < test else "dev" if point < test + dev else "train"
