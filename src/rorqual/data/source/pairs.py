"""Preference pairs in the form of OpenAI's fine-tuning API: a prompt, a preferred reply and another reply."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rorqual.core.conversations import Conversation, read_messages, read_tools, refuse_empty_prompt
from rorqual.core.errors import DataError
from rorqual.core.records import Tool, is_blank_message
from rorqual.core.rows import DataRow, name_row_in_errors
from rorqual.data.chat import ChatFormat, RenderedConversation


def read_pair(row: DataRow) -> tuple[tuple[Conversation, Conversation], tuple[Tool, ...]]:
    """Return the prompt with the preferred reply and the prompt with the other reply, and the tools of the prompt.

    Raises DataError, with file, line and key, for a missing or invalid key, an empty prompt, an empty preferred reply, or two equal
    replies.
    """
    given: dict[str, Any] = row.get("input", dict)
    prompt = read_messages(given.get("messages"), f"{row.where}: input: ")
    refuse_empty_prompt(prompt, f"{row.where}: input")
    preferred, other = ((*prompt, *_read_reply(row, key)) for key in ("preferred_output", "non_preferred_output"))
    if preferred == other or (is_blank_message(preferred[-1]) and not preferred[-1].tool_calls):
        raise DataError(
            "key 'preferred_output' is empty, or equal to 'non_preferred_output'",
            where=row.where,
            remedy="Correct the replies, or remove the row.",
        )
    return (preferred, other), read_tools(given, f"{row.where}: input")


def _read_reply(row: DataRow, key: str) -> Conversation:
    """Return the reply under `key`: one assistant message, which is in the loss whatever its `weight`."""
    reply = read_messages(row.get(key, list), f"{row.where}: {key}: ")
    if [message.role for message in reply] != ["assistant"]:
        raise DataError(
            f"key '{key}' is not one assistant message",
            where=row.where,
            remedy=f'Write "{key}": [{{"role": "assistant", "content": "..."}}], or remove the row.',
        )
    return (replace(reply[0], in_loss=True),)


def render_pair(row: DataRow, chat: ChatFormat) -> list[RenderedConversation]:
    """Return the prompt with the preferred reply, and with the other reply, as tokens. Only the tokens of the reply are in the loss.

    Raises DataError, with file and line, for a row that `read_pair` refuses, or that the chat format cannot represent.
    """
    pair, tools = read_pair(row)
    with name_row_in_errors(f"{row.where}: input"):
        return [chat.render(messages, train_from=len(messages) - 1, tools=tools) for messages in pair]
