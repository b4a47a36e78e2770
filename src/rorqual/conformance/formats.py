"""Checks of chat formats and tasks."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import get_args

from rorqual.conformance.models import ConformanceError
from rorqual.core.records import Message, Thinking, Tool
from rorqual.data.chat.chat_format import ChatFormat
from rorqual.tasks.find import SPLITS, check_gold, safe_grade, safe_problems
from rorqual.tasks.task import Task, Verdict

TOOL = Tool("add", "Add numbers.", {"type": "object", "properties": {"a": {"type": "integer"}}})
COUNT = 20
"""Number of problems of each split that a task is checked with."""
ASKED = (Message("system", "Be brief."), Message("user", "Where is Zürich? 🌊"))
REPLIES = (
    Message("assistant", "In Switzerland. "),
    Message("assistant", "4 < 5 & 6", "First\n\nI think."),
    Message("assistant", "x\ny"),
)


def _rendered(chat: ChatFormat) -> Iterator[tuple[Message, Thinking, list[int]]]:
    """Yield (reply, thinking mode, reply ids) for each reply and mode that fit together."""
    for thinking in get_args(Thinking):
        for reply in REPLIES:
            if thinking == "auto" or (thinking == "on") == (reply.reasoning is not None):
                prompt, whole = chat.prompt(ASKED, thinking), chat.render((*ASKED, reply), thinking=thinking)
                if whole.ids[: len(prompt)] != prompt or whole.ids[-1] not in chat.stop_ids:
                    raise ConformanceError(f"thinking={thinking}: a conversation is not prompt, reply and end token")
                yield reply, thinking, whole.ids[len(prompt) :]


def parsing(chat: ChatFormat) -> None:
    """A rendered reply is parsed as the message that `normalized` returns."""
    for reply, thinking, ids in _rendered(chat):
        if (found := chat.parse(ids, thinking)) != chat.normalized(reply, thinking):
            raise ConformanceError(f"with thinking={thinking}, the reply {reply!r} is parsed as {found!r}")


def streaming(chat: ChatFormat) -> None:
    """A reply that is streamed in pieces of any size, complete or cut off, gives the message of the whole parse."""
    for _, thinking, ids in _rendered(chat):
        for tools in ((), (TOOL,)) if chat.takes_tools else ((),):
            for end in range(len(ids) + 1):
                expected = chat.parse(ids[:end], thinking, tools)
                for size in (1, 3):
                    reader = chat.reader(thinking, tools)
                    deltas = [reader.feed(*ids[at : min(at + size, end)]) for at in range(0, end, size)]
                    deltas.append(reader.finish())
                    content, reasoning = (
                        "".join(getattr(d, name) for d in deltas) for name in ("content", "reasoning")
                    )
                    streamed = reader.message()
                    if streamed != expected or (content, reasoning) != (expected.text, expected.reasoning or ""):
                        raise ConformanceError(
                            f"streamed in pieces of {size} tokens: {streamed!r}; whole: {expected!r}"
                        )


def grading(task: Task) -> None:
    """The grader accepts gold answers, rejects an empty reply, and gives a reply the same grade each time."""
    for split in SPLITS:
        problems, again = (list(islice(safe_problems(task, split, 0), COUNT)) for _ in range(2))
        check_gold(task, problems)
        replies = [(problem, reply) for problem in problems for reply in (problem.answer, problem.answer + "0", "")]
        first, second = ([safe_grade(task, *one) for one in order] for order in (replies, replies[::-1]))
        if problems != again or first != second[::-1]:
            raise ConformanceError("the problems of a seed, or the grades of their replies, differ the second time")
        if Verdict.RIGHT in first[2::3]:
            raise ConformanceError("an empty reply is graded as right")
