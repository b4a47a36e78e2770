"""A task from your own conversations: the last assistant turn is the gold answer, and the turns before it are the prompt."""

from __future__ import annotations

from rorqual.core.conversations import read_conversation
from rorqual.core.errors import DataError
from rorqual.core.records import Message
from rorqual.core.rows import DataRow
from rorqual.tasks.answer import answer_number, final_answer
from rorqual.tasks.file_task import FileTask, carve_dev_split, normalize_text, rows_of_split
from rorqual.tasks.task import Problem, Split, Verdict

VERSION = 2
"""Version of the problems of `Messages`. Since version 2, an answer such as "It is 18" is not read as a number."""


def refuse_tools(row: DataRow) -> None:
    """Raise DataError if a row offers tools, because a prompt without them would be another prompt."""
    if row.values.get("tools"):
        raise DataError(
            "key 'tools': graded replies call no tools", where=row.where, remedy="Leave the key or the row out."
        )


class ConversationProblem(Problem):
    """A problem whose prompt is the last turn of a longer conversation."""

    @property
    def messages(self) -> tuple[Message, ...]:
        given: tuple[Message, ...] = self.meta["messages"]
        return given


class Messages(FileTask):
    r"""Problems from files in the format of `rorqual train sft data=FILE`.

    A row has `messages`, or `prompt` and `completion`, or `question` and `answer`.
    A reply is right if its final answer equals the final answer of the gold reply. The final answer is the marked text
    (`\boxed{}`, `####`, `Answer:`, `<answer>`) or, without a mark, the last line. Numbers are compared by value, and a unit may
    follow a number. Answers that are not numbers are compared without regard to case and white space. `data` is a file, or a
    folder with `*train*` and `*test*` files.
    """

    name = "messages"

    @property
    def versions(self) -> dict[str, int]:
        return {self.name: VERSION}

    def load(self, split: Split) -> list[Problem]:
        problems = [self._problem(row) for row in rows_of_split(self.data, split)]
        return carve_dev_split([(p.key, p) for p in problems], split)

    def _problem(self, row: DataRow) -> Problem:
        refuse_tools(row)
        *before, reply = read_conversation(row.values, row.where)
        if reply.role != "assistant" or not before or before[-1].role != "user":
            raise DataError(
                "the conversation does not end with a user turn and an assistant turn",
                where=row.where,
                remedy="Add a user turn and the assistant turn that is the gold answer.",
            )
        return ConversationProblem(
            key="messages " + " | ".join(f"{m.role} {normalize_text(m.label)}" for m in before),
            prompt=before[-1].label,
            answer=reply.text.strip(),
            family="messages",
            steps=reply.reasoning,
            meta={"where": row.where, "messages": tuple(before)},
            version=VERSION,
        )

    def canonical_answer(self, problem: Problem, reply: str) -> str | None:
        """See `Task.canonical_answer`. The type of the gold answer decides whether replies are compared as numbers or as text."""
        if answer_number(problem.answer) is None:
            return normalize_text(final_answer(reply)) or None
        number = answer_number(reply)
        return None if number is None else str(number)

    def is_marked(self, problem: Problem, reply: str) -> bool:
        return self.canonical_answer(problem, reply) is not None

    def grade(self, problem: Problem, reply: str) -> Verdict:
        gold = self.canonical_answer(problem, problem.answer)
        if gold is None:
            return Verdict.UNGRADED
        return Verdict.RIGHT if self.canonical_answer(problem, reply) == gold else Verdict.WRONG
