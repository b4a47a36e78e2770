"""A task: problems, a grader and optional worked solutions. Evaluation, filtering of samples and RL rewards all use the
task's grader."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

from rorqual.core.records import Message
from rorqual.core.registry import Registered
from rorqual.tasks.answer_marks import ALONE, AnswerMark, last_line, last_mark
from rorqual.tasks.numbers import last_number, read_unitless_number

Split = Literal["train", "dev", "test"]
"""The splits of a task. Use `train` for training, `dev` for choosing hyperparameters, and `test` only for final results."""


class Verdict(Enum):
    """The grade of a reply. `UNGRADED` means that the grader failed or timed out, or that the gold answer is unusable.

    Ungraded samples are counted, but never used for training.
    """

    RIGHT = "right"
    WRONG = "wrong"
    UNGRADED = "ungraded"


@dataclass(frozen=True)
class Problem:
    """A problem with a checkable answer.

    `key` is the canonical form of the problem: a+b and b+a share one key and count as one problem. A hash of the key selects
    the split. `prompt` is never empty. `answer` is never empty in a training set. `steps` is a worked solution, the text
    between `<think>` and `</think>`, or None. `version` is the version of the problem family. Results of different versions are
    not comparable.
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
        """The prompt as chat messages."""
        return (Message("user", self.prompt),)


class Task(Registered, ABC):
    """A source of problems with checkable answers. Subclass `Task` in your own file: `rorqual train grpo task=./mine.py:Mine`."""

    name: str = "task"
    checkpoint: str = ""
    """Digest of the checkpoint that is being measured, or "". A task with a sealed test split records this digest when the test
    split is read."""
    mark: AnswerMark = ALONE
    """The mark of the answer in a reply. With the mark `ALONE`, the whole reply is the answer."""
    patterned: bool = False
    """True if the task's problems share template sentences. Matching word sequences in problems of a patterned task are no
    evidence of contamination."""
    has_gold_replies: bool = True
    """False if a gold answer is no reply that the grader accepts. Such a task cannot be trained on with worked solutions."""

    @property
    def versions(self) -> dict[str, int]:
        """The version of the problems of each family, by family name. A run can be resumed only if the versions have not
        changed."""
        return {}

    @abstractmethod
    def problems(self, split: Split, seed: int) -> Iterator[Problem]:
        """Yield the problems of `split` in an order fixed by `seed`. The iterator over the problems may be endless, but it must
        not search for ever for a problem that it has not yielded yet."""

    @abstractmethod
    def grade(self, problem: Problem, reply: str) -> Verdict:
        """Grade the marked answer of `reply`, which is the text after `</think>`. Rewards in training are based on `reward`.

        An implementation of `grade` must not raise exceptions, because an exception stops the training run.
        """

    def reward(self, problem: Problem, reply: str, verdict: Verdict) -> float:
        """Return the reward of a reply with a verdict in training, from 0 to 1. By default, a right reply has the reward 1, and
        another 0.

        An implementation of `reward` must not raise exceptions either."""
        return float(verdict is Verdict.RIGHT)

    def grade_last(self, problem: Problem, reply: str) -> Verdict:
        """Grade a reply by its last number or line if `grade` finds it wrong. An evaluation shows this accuracy beside the
        accuracy by `grade`.

        This method is for models that do not know how to mark an answer. This method is too lenient for rewards.
        """
        verdict = self.grade(problem, reply)
        if verdict is not Verdict.WRONG:
            return verdict
        number = (
            last_number(reply)
            if read_unitless_number(last_mark(problem.answer) or problem.answer) is not None
            else None
        )
        return self.grade(problem, last_line(reply) if number is None else number.text)

    def is_marked(self, problem: Problem, reply: str) -> bool:
        """Return whether `reply` has an answer that is marked in the way the task asks for. An unmarked reply is wrong."""
        return self.mark.find(reply) is not None

    def canonical_answer(self, problem: Problem, reply: str) -> str | None:
        """Return the answer of `reply` in a canonical form, or None if `reply` has no answer. Replies with equal answers have
        the same canonical form.

        Replies with the same canonical answer must have the same grade. Majority votes compare canonical answers.
        """
        raise NotImplementedError

    def label(self, problem: Problem) -> str:
        """Return the class of a problem, which the guessing baselines predict. By default, the class is the gold answer.
        Override this method if every problem has a different gold answer."""
        return problem.answer


def split_of(key: str, *, dev: float = 0.02, test: float = 0.04) -> Split:
    """Return the split of a problem by a hash of the problem's canonical form, so that equivalent problems get the same
    split."""
    point = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
    return "test" if point < test else "dev" if point < test + dev else "train"
