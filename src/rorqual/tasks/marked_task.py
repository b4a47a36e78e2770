"""Base class of the tasks whose prompt tells the model how to mark its answer."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from rorqual.tasks.answer_marks import without_thinking
from rorqual.tasks.task import Problem, Task, Verdict

VERSION = 2
"""Version of the problems of all marked tasks. In version 2, the prompt asks for a mark, and only the marked answer is graded."""


class MarkedTask(Task):
    """A task that parses the marked answer of a reply as a value, and compares this value with the value of the gold answer.

    `Problem.answer` is the marked gold answer, such as `#### 18`. A reply is right if its last marked answer has exactly one
    value that equals the value of the gold answer. A reply is unmarked and wrong if the reply has no mark, or if its marked
    answer has no value or several values ("18 or 19"). If the gold answer has no value, all replies are ungraded.
    """

    @property
    def versions(self) -> dict[str, int]:
        return {self.name: VERSION}

    @abstractmethod
    def parse_answer(self, problem: Problem, text: str) -> Any:
        """Return the value of the marked text `text`, in a form that can be compared with `==`. Return None if `text` is not
        exactly one value."""

    @abstractmethod
    def parse_last_answer(self, problem: Problem, reply: str) -> Any:
        """Return the last value in a reply, marked or unmarked, or None if the reply has no value."""

    def parse_marked_answer(self, problem: Problem, reply: str) -> Any:
        """Return the value of the marked answer of a reply, or None if the reply is unmarked."""
        text = self.mark.find(reply)
        return None if text is None else self.parse_answer(problem, text)

    def compare_with_gold(self, problem: Problem, gold: Any, value: Any) -> Verdict:
        """Compare `value`, the value of a reply, with `gold`, the value of the gold answer."""
        return Verdict.RIGHT if gold == value else Verdict.WRONG

    def grade(self, problem: Problem, reply: str) -> Verdict:
        return self._grade_value(problem, self.parse_marked_answer(problem, reply))

    def grade_last(self, problem: Problem, reply: str) -> Verdict:
        return self._grade_value(problem, self.parse_last_answer(problem, without_thinking(reply)))

    def is_marked(self, problem: Problem, reply: str) -> bool:
        return self.parse_marked_answer(problem, reply) is not None

    def canonical_answer(self, problem: Problem, reply: str) -> str | None:
        value = self.parse_marked_answer(problem, reply)
        return None if value is None else str(value)

    def _grade_value(self, problem: Problem, value: Any) -> Verdict:
        gold = self.parse_marked_answer(problem, problem.answer)
        if gold is None:
            return Verdict.UNGRADED
        return Verdict.WRONG if value is None else self.compare_with_gold(problem, gold, value)
