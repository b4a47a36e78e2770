"""Read conversations from JSONL or Parquet.

A row is `{"messages": [{"role", "content", "reasoning"?}, ...]}`, or a pair `{"prompt", "completion", "reasoning"?}` or
`{"question", "answer", "reasoning"?}`. `content` is text or a list of parts (`core.parts`). `reasoning_content`, the name in
DeepSeek's API, is read as `reasoning`. Assistant content that begins with `<think>...</think>` is split: the text inside is
the reasoning, and white space around the tags is removed.
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
    """Conversations in file order. `skipped` counts those with nothing to train on.

    Those have no assistant turn, an empty one, or were dropped by a filter.
    """

    conversations: list[Conversation]
    skipped: int = 0


def read_conversations(path: Path) -> Loaded:
    """Read `.jsonl` (also `.json` with an object on each line) or `.parquet`.

    Raises DataError that names file and line (or row) if a row is invalid or has an empty prompt. A conversation without an
    assistant turn, or with an empty answer (white space only), is skipped and counted. If no conversation is left, the file
    is refused. Among a teacher's samples (`data.distilled`), those dropped by a filter are skipped.
    """
    path = Path(path)
    if path.suffix.lower() == ".parquet" and is_distilled(path):
        return _kept(path)
    found: list[Conversation] = []
    skipped = 0
    for where, row in _rows(path):
        conversation = _conversation(row, where)
        if teaches(conversation):
            found.append(conversation)
        else:
            skipped += 1
    if not found:
        raise DataError(
            f"nothing to train on: each of its {skipped} conversations lacks an assistant turn or has an empty one",
            where=str(path),
            remedy="Each needs a message with role 'assistant' and some text.",
        )
    return Loaded(found, skipped)


def teaches(conversation: Conversation) -> bool:
    """Return whether it has assistant turns and none is empty. An empty one would teach the model to say nothing."""
    replies = [message for message in conversation if message.role == "assistant"]
    return bool(replies) and not any(map(says_nothing, replies))


def _kept(path: Path) -> Loaded:
    kept, dropped = read_kept_messages(path)
    for number, conversation in kept.items():
        refuse_empty_prompt(conversation, f"{path}:row {number}")
    found = [conversation for conversation in kept.values() if teaches(conversation)]
    dropped += len(kept) - len(found)
    if not found:
        raise DataError(
            f"nothing to train on: each of its {dropped} samples was dropped or has an empty answer",
            where=str(path),
            remedy="The card beside the file says which filter dropped them. Sample more, use a better teacher, or change the filters.",
        )
    return Loaded(found, dropped)


def refuse_empty_prompt(conversation: Conversation, where: str) -> None:
    """Raise a DataError for a user turn that is white space only: its answer would answer nothing."""
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


def _conversation(row: dict[str, Any], where: str) -> Conversation:
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
    wrong = next((key for key in row if nearest(key, known).startswith("Did")), "")
    raise DataError(
        f"it has the keys {', '.join(sorted(row)) or 'none'}",
        where=where,
        remedy=f"{nearest(wrong, known) if wrong else ''} A row needs messages, prompt+completion or question+answer."
        " To read a task's own files, add task=NAME.".strip(),
    )


def _message(message: Any, where: str) -> Message:
    if not isinstance(message, dict):
        raise DataError(f"a {type(message).__name__}, not an object", where=where, remedy="Give role and content.")
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
            f"key '{key}' contains half of a surrogate pair", where=where, remedy="Write it as one character."
        )
    return value


def is_unicode(text: str) -> bool:
    """Return whether UTF-8 can encode `text`. JSON can spell a lone surrogate, which no tokenizer reads."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _reasoning(row: dict[str, Any], where: str) -> str | None:
    # Parquet gives None for a key that other rows have and this one lacks.
    given = [key for key in REASONING if row.get(key) is not None]
    return _text(row, given[0], where) if given else None


def _assistant(content: Content, reasoning: str | None, where: str) -> Message:
    said = Message("assistant", content, reasoning)
    if not said.label.lstrip().startswith(OPEN):
        return said
    if reasoning is not None:
        raise DataError(f"reasoning is given twice: by key and by {OPEN}", where=where, remedy="Keep one of them.")
    inside, mark, after = said.text.lstrip().removeprefix(OPEN).partition(CLOSE)
    if not mark:
        raise DataError(f"{OPEN} without {CLOSE}", where=where, remedy="Close it, or remove the conversation.")
    return Message("assistant", after.strip(), reasoning=inside.strip())
