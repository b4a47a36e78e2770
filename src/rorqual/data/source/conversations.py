"""Conversations from JSONL or Parquet files.

A row is `{"messages": [{"role", "content", "reasoning"?}, ...]}`, or a pair `{"prompt", "completion", "reasoning"?}` or
`{"question", "answer", "reasoning"?}`. `content` is text or a list of parts (`core.parts`). `reasoning_content`, the field name
in DeepSeek's API, is an alias of `reasoning`. If assistant content begins with `<think>...</think>`, the text between the tags
becomes the reasoning, and white space around the tags is removed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from rorqual.core.errors import DataError, nearest
from rorqual.core.parts import Content, read_content
from rorqual.core.records import Message, Role, says_nothing
from rorqual.data.distilled import is_distilled, read_kept_messages
from rorqual.data.source.files import json_lines, parquet_rows

Conversation = tuple[Message, ...]

PAIRS = (("prompt", "completion"), ("question", "answer"))
REASONING = ("reasoning", "reasoning_content")
OPEN, CLOSE = "<think>", "</think>"


@dataclass(frozen=True)
class Loaded:
    """Conversations in file order. `skipped` counts the conversations that cannot be trained on.

    A conversation is skipped if it has no assistant turn, if an assistant turn is empty, or if a filter dropped it.
    """

    conversations: list[Conversation]
    skipped: int = 0


def read_conversations(path: Path) -> Loaded:
    """Read conversations from a `.parquet` file, or from a `.jsonl`, `.ndjson` or `.json` file with one object per line.

    A conversation is skipped and counted if it has no assistant turn, or if an assistant turn is empty or only white
    space. Teacher samples (`data.distilled`) that a filter dropped are skipped.

    Raises DataError if no conversation remains, if a row is invalid, or if a row has an empty prompt. The error for a
    row names the file and the line or row number.
    """
    path = Path(path)
    if path.suffix.lower() == ".parquet" and is_distilled(path):
        return _read_teacher_samples(path)
    conversations: list[Conversation] = []
    skipped = 0
    for where, row in _rows(path):
        conversation = read_conversation(row, where)
        if teaches(conversation):
            conversations.append(conversation)
        else:
            skipped += 1
    if not conversations:
        raise DataError(
            f"nothing to train on: all {skipped} conversations lack an assistant turn or have an empty assistant turn",
            where=str(path),
            remedy="Each conversation needs a message with role 'assistant' that has text.",
        )
    return Loaded(conversations, skipped)


def teaches(conversation: Conversation) -> bool:
    """Return whether the conversation has assistant turns and all of them have text. An empty turn would teach empty replies."""
    replies = [message for message in conversation if message.role == "assistant"]
    return bool(replies) and not any(map(says_nothing, replies))


def _read_teacher_samples(path: Path) -> Loaded:
    by_row, skipped = read_kept_messages(path)
    for number, conversation in by_row.items():
        refuse_empty_prompt(conversation, f"{path}:row {number}")
    conversations = [conversation for conversation in by_row.values() if teaches(conversation)]
    skipped += len(by_row) - len(conversations)
    if not conversations:
        raise DataError(
            f"nothing to train on: all {skipped} samples were dropped by a filter or have an empty answer",
            where=str(path),
            remedy="`card.md` in the same folder counts the samples that each filter dropped. Sample more, use a better "
            "teacher, or change the filters.",
        )
    return Loaded(conversations, skipped)


def refuse_empty_prompt(conversation: Conversation, where: str) -> None:
    """Raise a DataError if a user turn is empty or only white space."""
    for number, message in enumerate(conversation, start=1):
        if message.role == "user" and says_nothing(message):
            raise DataError(
                "an empty prompt",
                where=f"{where}: message {number}",
                remedy="Write text in the user turn, or remove the conversation.",
            )


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    kind = path.suffix.lower()
    if kind == ".parquet":
        return parquet_rows(path, (("messages",), *PAIRS))
    if kind in (".jsonl", ".json", ".ndjson"):
        return json_lines(path)
    raise DataError(f"unknown file type {kind!r}", where=str(path), remedy="Give a .jsonl or a .parquet file.")


def read_conversation(row: dict[str, Any], where: str) -> Conversation:
    """Return the conversation of a row. Raises DataError if the row is invalid or its prompt is empty."""
    conversation = _read(row, where)
    refuse_empty_prompt(conversation, where)
    return conversation


def _read(row: dict[str, Any], where: str) -> Conversation:
    if row.get("messages") is not None:
        messages = row["messages"]
        if not isinstance(messages, list) or not messages:
            fault = "an empty list" if isinstance(messages, list) else f"a {type(messages).__name__}, not a list"
            raise DataError(f"key 'messages' is {fault}", where=where, remedy="Give a list of messages.")
        return tuple(
            _message(message, f"{where}: message {number}") for number, message in enumerate(messages, start=1)
        )
    for ask, answer in PAIRS:
        if ask in row and answer in row and (row[ask] is not None or row[answer] is not None):
            reply = _assistant(_text(row, answer, where), _reasoning(row, where), where)
            return Message("user", _text(row, ask, where)), reply
    if "messages" in row and len(row) == 1:
        raise DataError("key 'messages' is null", where=where, remedy="Give a list of messages.")
    known = ["messages", *(key for pair in PAIRS for key in pair)]
    misspelt = next((key for key in row if nearest(key, known).startswith("Did")), "")
    raise DataError(
        f"not a conversation: the keys are {', '.join(sorted(row))}" if row else "not a conversation: no keys",
        where=where,
        remedy=f"{nearest(misspelt, known) if misspelt else ''} A row needs messages, prompt+completion or question+answer."
        " If the file belongs to a task, add task=NAME.".strip(),
    )


def _message(message: Any, where: str) -> Message:
    if not isinstance(message, dict):
        raise DataError(
            f"the message is a {type(message).__name__}, not an object",
            where=where,
            remedy="Give an object with role and content.",
        )
    roles: tuple[Role, ...] = get_args(Role)
    role = next((known for known in roles if known == message.get("role")), None)
    if role is None:
        name = message.get("role")
        raise DataError(f"unknown role {name!r}", where=where, remedy=nearest(str(name), roles))
    content, reasoning = _content(message, where), _reasoning(message, where)
    if role == "assistant":
        return _assistant(content, reasoning, where)
    if reasoning is not None:
        raise DataError(f"a {role} turn has reasoning", where=where, remedy="Only assistant turns may have reasoning.")
    return Message(role, content)


def _content(message: dict[str, Any], where: str) -> Content:
    if isinstance(message.get("content"), list):
        return read_content(message["content"], f"{where}: content")
    return _text(message, "content", where)


def _text(row: dict[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        fault = f"is a {type(value).__name__}, not text"
        fault = fault if value is not None else "is null" if key in row else "is missing"
        raise DataError(f"key '{key}' {fault}", where=where, remedy="Give text.")
    if not is_unicode(value):
        raise DataError(
            f"key '{key}' contains a lone surrogate",
            where=where,
            remedy="Remove the surrogate, or write the whole surrogate pair.",
        )
    return value


def is_unicode(text: str) -> bool:
    """Return whether UTF-8 can encode `text`.

    UTF-8 cannot encode a lone surrogate, which a `\\u` escape in JSON can produce.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _reasoning(row: dict[str, Any], where: str) -> str | None:
    # In Parquet, every row has every column: the value is None if the row does not set the key.
    keys = [key for key in REASONING if row.get(key) is not None]
    return _text(row, keys[0], where) if keys else None


def _assistant(content: Content, reasoning: str | None, where: str) -> Message:
    message = Message("assistant", content, reasoning)
    if not message.label.lstrip().startswith(OPEN):
        return message
    if reasoning is not None:
        raise DataError(
            f"reasoning is given twice: in a key, and after {OPEN} in the content",
            where=where,
            remedy="Remove one of the two texts.",
        )
    inside, closing_tag, after = message.text.lstrip().removeprefix(OPEN).partition(CLOSE)
    if not closing_tag:
        raise DataError(f"{OPEN} without {CLOSE}", where=where, remedy=f"Add {CLOSE}, or remove the conversation.")
    return Message("assistant", after.strip(), reasoning=inside.strip())
