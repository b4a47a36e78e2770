"""Read a job's files: the conversations of supervised jobs, and a check for every method when a job is created."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path

from rorqual.core.conversations import Conversation, read_conversation, read_tools
from rorqual.core.errors import DataError
from rorqual.core.records import Tool
from rorqual.core.rows import read_rows
from rorqual.data.source.conversations import is_trainable
from rorqual.data.source.pairs import read_pair
from rorqual.fine_tuning.schemas import Method
from rorqual.tasks.openai_graders import openai_task

GRADER = "method.reinforcement.grader"
"""The name of the grader in error messages."""


def check_examples(method: Method, file: Path, *, read: bool) -> None:
    """Check the grader of a method, and with `read` that the rows of a file are those of the method.

    Raises ConfigError for a grader that is not offered, and DataError, which names file and line, for a wrong row.
    """
    if method.reinforcement is not None:
        task = openai_task(file, method.reinforcement.grader, where=GRADER)
        if read:
            deque(task.problems("train", 0), maxlen=0)
    elif read and method.type == "dpo":
        for row in read_rows(file):
            read_pair(row)
    elif read:
        deque(read_examples(file), maxlen=0)


def read_examples(file: Path) -> Iterator[tuple[str, Conversation, tuple[Tool, ...]]]:
    """Yield the place of each row of a file, its conversation and its tools. Raises DataError, with file and line, for a wrong row, and
    for a row that teaches nothing."""
    for row in read_rows(file):
        conversation, tools = read_conversation(row.values, row.where), read_tools(row.values, row.where)
        if not is_trainable(conversation):
            problem = "key 'messages': no assistant message with text or calls to learn from, or an empty one"
            raise DataError(problem, where=row.where, remedy="Correct the row, or remove it.")
        yield row.where, conversation, tools
