"""Read a job's files, and check that the base model can learn from each row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rorqual.core.conversations import Conversation, read_conversation, read_tools
from rorqual.core.errors import DataError
from rorqual.core.records import Tool
from rorqual.core.rows import name_row_in_errors, read_rows
from rorqual.data.chat import ChatFormat
from rorqual.data.source.conversations import is_trainable
from rorqual.data.source.pairs import render_pair
from rorqual.fine_tuning.schemas import Method
from rorqual.tasks.openai_graders import openai_task

GRADER = "method.reinforcement.grader"
"""The name of the grader in error messages."""
FEWEST_REPLY = 16
"""In reinforcement, a prompt must leave room for `FEWEST_REPLY` tokens."""


def example_lengths(method: Method, file: Path, chat: ChatFormat, context: int) -> Iterator[int]:
    """Yield the number of tokens of each training sample of a file, of both replies of each pair, or of each prompt, by `method`.

    `context`: maximum tokens of a sample, or of a prompt and a reply of `FEWEST_REPLY` tokens.

    Raises ConfigError for a grader that is not offered. Raises DataError, with file and line, for a row that is not of the method,
    teaches nothing, is too long, or cannot be written in the chat format.
    """
    most = context if method.reinforcement is None else context - FEWEST_REPLY
    for where, samples in _rendered_rows(method, file, chat):
        if (longest := max(map(len, samples))) > most:
            problem = f"{longest} tokens, but the context of the base model leaves room for {most}"
            raise DataError(problem, where=where, remedy="Shorten the row, or remove it.")
        yield from map(len, samples)


def _rendered_rows(method: Method, file: Path, chat: ChatFormat) -> Iterator[tuple[str, Sequence[Sequence[int]]]]:
    """Yield the place of each row, and the token ids of its samples."""
    if method.reinforcement is not None:
        for problem in openai_task(file, method.reinforcement.grader, where=GRADER).problems("train", 0):
            with name_row_in_errors(where := problem.meta["where"]):
                prompt = chat.prompt(problem.messages)
            yield where, [prompt]
    elif method.type == "dpo":
        for row in read_rows(file):
            yield row.where, [one.ids for one in render_pair(row, chat)]
    else:
        for where, turns, tools in read_examples(file):
            with name_row_in_errors(where):
                rendered = chat.training_renderings(turns, tools)
            yield where, [one.ids for one in rendered]


def read_examples(file: Path) -> Iterator[tuple[str, Conversation, tuple[Tool, ...]]]:
    """Yield the place of each row of a file, its conversation and its tools. Raises DataError, with file and line, for a wrong row, and
    for a row that teaches nothing."""
    for row in read_rows(file):
        conversation, tools = read_conversation(row.values, row.where), read_tools(row.values, row.where)
        row.get("messages", object)  # `read_conversation` also takes prompt and completion, which are no chat
        if not is_trainable(conversation):
            problem = "key 'messages': no assistant message with text or calls to learn from, or an empty one"
            raise DataError(problem, where=row.where, remedy="Correct the row, or remove it.")
        yield row.where, conversation, tools
