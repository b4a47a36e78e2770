"""Conversations to train on, from a file of rows or of teacher samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rorqual.core.conversations import Conversation, read_conversation, read_tools, refuse_empty_prompt
from rorqual.core.errors import DataError
from rorqual.core.records import Tool, is_blank_message
from rorqual.core.rows import read_rows
from rorqual.data.distilled import is_distilled, read_kept_messages


@dataclass(frozen=True)
class LoadedConversations:
    """The conversations of a file, in file order. `skipped` counts the conversations that cannot be trained on.

    A conversation is skipped if it has no assistant turn, if an assistant turn is empty, or if a filter dropped it. `tools` has
    the tools of each conversation, or is empty if the file has no tools.
    """

    conversations: list[Conversation]
    skipped: int = 0
    tools: Sequence[tuple[Tool, ...]] = ()


def read_conversations(path: Path) -> LoadedConversations:
    """Read conversations from a file of rows (`core.rows`).

    A conversation is skipped and counted if it has no assistant turn, or if an assistant turn is empty or only white
    space. Teacher samples (`data.distilled`) that a filter dropped are skipped.

    Raises DataError if no conversation remains, if a row is invalid, or if a row has an empty prompt. The error for a
    row names the file and the line or row number.
    """
    path = Path(path)
    if path.suffix.lower() == ".parquet" and is_distilled(path):
        return _read_teacher_samples(path)
    conversations, tools = list[Conversation](), list[tuple[Tool, ...]]()
    skipped = 0
    for row in read_rows(path):
        conversation = read_conversation(row.values, row.where)
        if is_trainable(conversation):
            conversations.append(conversation)
            tools.append(read_tools(row.values, row.where))
        else:
            skipped += 1
    if not conversations:
        raise DataError(
            f"nothing to train on: all {skipped} conversations lack an assistant turn or have an empty assistant turn",
            where=str(path),
            remedy="Each conversation needs a message with role 'assistant' that has text.",
        )
    return LoadedConversations(conversations, skipped, tools)


def is_trainable(conversation: Conversation) -> bool:
    """Return whether the conversation has assistant turns in the loss, and every assistant turn has text or tool calls.
    An empty assistant turn would teach the model to give empty replies."""
    replies = [message for message in conversation if message.role == "assistant"]
    empty = any(is_blank_message(reply) and not reply.tool_calls for reply in replies)
    return any(reply.in_loss for reply in replies) and not empty


def _read_teacher_samples(path: Path) -> LoadedConversations:
    by_row, skipped = read_kept_messages(path)
    for number, conversation in by_row.items():
        refuse_empty_prompt(conversation, f"{path}:row {number}")
    conversations = [conversation for conversation in by_row.values() if is_trainable(conversation)]
    skipped += len(by_row) - len(conversations)
    if not conversations:
        raise DataError(
            f"nothing to train on: all {skipped} samples were dropped by a filter or have an empty answer",
            where=str(path),
            remedy="`card.md` in the same folder counts the samples that each filter dropped. Sample more, use a better "
            "teacher, or change the filters.",
        )
    return LoadedConversations(conversations, skipped)
