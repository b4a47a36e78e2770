"""A task from your own conversations: the last assistant turn is the gold answer, and the turns before it are the prompt."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from rorqual.core.errors import DataError
from rorqual.core.parts import read_content
from rorqual.core.records import Message, Role, says_nothing
from rorqual.tasks.answer import answer_number, final_answer
from rorqual.tasks.base import Problem, Split, Verdict
from rorqual.tasks.rows import DataRow, FileTask, carve, held_out, normal, read

PAIRS = (("prompt", "completion"), ("question", "answer"))
END_THINK = "</think>"
VERSION = 2
"""Version 2: a sentence around a number ("It is 18") is not read."""


class Asked(Problem):
    """A problem with a conversation before its prompt."""

    @property
    def messages(self) -> tuple[Message, ...]:
        given: tuple[Message, ...] = self.meta["messages"]
        return given


class Messages(FileTask):
    r"""Problems from rows that `rorqual train sft data=FILE` also reads.

    A row has `messages`, or `prompt` and `completion`, or `question` and `answer`.
    A reply is right if its final answer equals the final answer of the gold reply. The final answer is the marked text (`\boxed{}`,
    `####`, `Answer:`, `<answer>`) or, without a mark, the last line. Numbers are compared by value, and a unit may follow them.
    Answers that are not numbers are compared without regard to case and white space.
    `data` is a file, or a folder with `*train*` and `*test*` files.
    """

    name = "messages"

    def __init__(self, data: Path) -> None:
        super().__init__(data)

    @property
    def versions(self) -> dict[str, int]:
        return {self.name: VERSION}

    def load(self, split: Split) -> list[Problem]:
        paths = held_out(self.data, split, {"train": "train", "test": "test"})
        problems = [self._problem(row) for path in paths for row in read(path)]
        return carve([(p.key, p) for p in problems], split)

    def _problem(self, row: DataRow) -> Problem:
        turns = _turns(row)
        before, reply = turns[:-1], turns[-1] if turns else None
        if reply is None or reply.role != "assistant" or not before or before[-1].role != "user":
            raise DataError(
                "the conversation does not end with a user turn and an assistant turn",
                where=row.where,
                remedy="Add a user turn and the assistant turn that is the gold answer.",
            )
        return Asked(
            key="messages " + " | ".join(f"{m.role} {normal(m.label)}" for m in before),
            prompt=before[-1].label,
            answer=reply.text.rpartition(END_THINK)[2].strip(),
            family="messages",
            steps=reply.reasoning,
            meta={"where": row.where, "messages": tuple(before)},
            version=VERSION,
        )

    def canonical_answer(self, problem: Problem, reply: str) -> str | None:
        """See `Task.canonical_answer`. The type of the gold answer decides whether replies are compared as numbers or as text."""
        if answer_number(problem.answer) is None:
            return normal(final_answer(reply)) or None
        number = answer_number(reply)
        return None if number is None else str(number)

    def is_marked(self, problem: Problem, reply: str) -> bool:
        return self.canonical_answer(problem, reply) is not None

    def grade(self, problem: Problem, reply: str) -> Verdict:
        gold = self.canonical_answer(problem, problem.answer)
        if gold is None:
            return Verdict.UNGRADED
        return Verdict.RIGHT if self.canonical_answer(problem, reply) == gold else Verdict.WRONG


def _turns(row: DataRow) -> list[Message]:
    for ask, answer in PAIRS:
        if row.values.get(ask) is not None or row.values.get(answer) is not None:
            return [_message({"role": "user", "content": row.get(ask)}, row.where),
                    _message({**row.values, "role": "assistant", "content": row.get(answer)}, row.where)]  # fmt: skip
    return [_message(item, row.where) for item in row.get("messages", list)]


def _message(item: Any, where: str) -> Message:
    roles: tuple[Role, ...] = get_args(Role)
    role = next((role for role in roles if isinstance(item, Mapping) and item.get("role") == role), None)
    if role is None or not isinstance(item.get("content"), str | list):
        raise DataError(
            f"the item is not a message: {item!r:.60}",
            where=where,
            remedy=f"Give the message a role ({', '.join(roles)}) and content.",
        )
    if not isinstance(item.get("reasoning"), str | None):
        raise DataError(f"'reasoning' is not a string: {item['reasoning']!r:.60}", where=where, remedy="Fix the row.")
    message = Message(role, read_content(item["content"], f"{where}: content"), item.get("reasoning"))
    if role == "user" and says_nothing(message):
        raise DataError(
            "the user turn is an empty prompt", where=where, remedy="Add text to the user turn, or remove the row."
        )
    return message
