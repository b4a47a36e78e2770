"""Conversations from JSONL or Parquet.

A row is `{"messages": [{"role", "content", "reasoning"?}, ...]}`, where a content is a text or a list of parts (`core.parts`), or a pair
`{"prompt", "completion", "reasoning"?}` or `{"question", "answer", "reasoning"?}`. `reasoning_content` is `reasoning` by its name in
DeepSeek's API. An assistant's content that begins with `<think>...</think>` is split: inside is the reasoning, and white space beside
the marks goes.
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
    """Conversations in the order of the file; `skipped` had no assistant turn or an empty one, or a filter dropped it: nothing to train on."""

    conversations: list[Conversation]
    skipped: int = 0


def read_conversations(path: Path) -> Loaded:
    """Read `.jsonl` (also `.json` with an object on each line) or `.parquet`.

    A `DataError` names file and line (or row) of what cannot be used, an empty prompt among it. A conversation without an assistant
    turn, or with one whose answer is empty (white space alone), is skipped and counted; a file with nothing else is refused. Of a teacher's
    samples (`data.distilled`), those that a filter dropped are skipped.
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
            f"nothing to train on: none of its {skipped} conversations has an assistant turn that is not empty",
            where=str(path),
            remedy="Each needs a message with the role 'assistant' and a text.",
        )
    return Loaded(found, skipped)


def teaches(conversation: Conversation) -> bool:
    """Whether it has an assistant turn, and none that is empty: an empty one would teach to say nothing."""
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
            remedy="The card beside it says by which filter: sample more, a better teacher, or set the filters otherwise.",
        )
    return Loaded(found, dropped)


def refuse_empty_prompt(conversation: Conversation, where: str) -> None:
    """A user's turn that is white space alone is a `DataError`: what its answer answers is not there."""
    for number, message in enumerate(conversation, start=1):
        if message.role == "user" and says_nothing(message):
            raise DataError(
                "an empty prompt",
                where=f"{where}: message {number}",
                remedy="Give the user's turn a text, or leave the conversation out.",
            )


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    kind = path.suffix.lower()
    if kind == ".parquet":
        return parquet_rows(path, (("messages",), *PAIRS))
    if kind in (".jsonl", ".json", ".ndjson"):
        return json_lines(path)
    raise DataError(f"unknown kind of file {kind!r}", where=str(path), remedy="Give a .jsonl or a .parquet file.")


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
        " A task's own files are read with task=NAME beside data=.".strip(),
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
        raise DataError(f"a {role} turn with reasoning", where=where, remedy="Only the assistant reasons.")
    return Message(role, content)


def _content(message: dict[str, Any], where: str) -> Content:
    if isinstance(message.get("content"), list):
        return read_content(message["content"], f"{where}: content")
    return _text(message, "content", where)


def _text(row: dict[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        fault = f"is a {type(value).__name__}, not a text"
        fault = fault if value is not None else "is null" if key in row else "is missing"
        raise DataError(f"key '{key}' {fault}", where=where, remedy="Give a text.")
    if not is_unicode(value):
        raise DataError(f"key '{key}' holds half of a surrogate pair", where=where, remedy="Write it as one character.")
    return value


def is_unicode(text: str) -> bool:
    """Whether UTF-8 has bytes for it: JSON can spell half of a surrogate pair, and no tokenizer can read it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _reasoning(row: dict[str, Any], where: str) -> str | None:
    # Parquet gives a column that a row does not have as None.
    given = [key for key in REASONING if row.get(key) is not None]
    return _text(row, given[0], where) if given else None


def _assistant(content: Content, reasoning: str | None, where: str) -> Message:
    said = Message("assistant", content, reasoning)
    if not said.label.lstrip().startswith(OPEN):
        return said
    if reasoning is not None:
        raise DataError(f"reasoning given twice: a key and {OPEN}", where=where, remedy="Keep one of them.")
    inside, mark, after = said.text.lstrip().removeprefix(OPEN).partition(CLOSE)
    if not mark:
        raise DataError(f"{OPEN} without {CLOSE}", where=where, remedy="Close it, or leave the conversation out.")
    return Message("assistant", after.strip(), reasoning=inside.strip())
