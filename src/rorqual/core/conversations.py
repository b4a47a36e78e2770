"""Read conversations from the rows of a user's file, for training, tasks, `rorqual teach` and `rorqual generate`.

A row is `{"messages": [{"role", "content", "reasoning"?}, ...]}`, or a prompt and its answer,
`{"prompt", "completion", "reasoning"?}` or `{"question", "answer", "reasoning"?}`. `content` is text or a list of content
parts (`core.content_parts`). `reasoning_content`, the field name in DeepSeek's API, is an alias of `reasoning`. If the
`content` of an assistant message begins with `<think>...</think>`, the text between the tags becomes the reasoning, and white
space around the tags is removed.

As in OpenAI's files, the role `developer` is the role `system`, an assistant message may have `tool_calls` instead of `content`,
and `weight`: 0 keeps the message out of the loss. A row may have `tools`, and a tool message has a `tool_call_id`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

import pydantic_core

from rorqual.core.content_parts import Content, read_content
from rorqual.core.errors import DataError, suggest_name
from rorqual.core.records import Message, Role, Tool, ToolCall, is_blank_message

Conversation = tuple[Message, ...]

PAIRS = (("prompt", "completion"), ("question", "answer"))
REASONING = ("reasoning", "reasoning_content")
OPEN, CLOSE = "<think>", "</think>"
CALL_FORM = '{"id": ..., "type": "function", "function": {"name": ..., "arguments": "a JSON object as text"}}'
TOOL_FORM = '{"type": "function", "function": {"name": ..., "description": ..., "parameters": ...}}'
ROLE = re.compile(r"(?:\A|\n\n)(system|user|assistant): ")
DIALOGUE = re.compile(r"(system )?(user assistant )*user ")
"""The roles of turns before a reply that every chat format can render."""


def read_conversation(row: Mapping[str, Any], where: str) -> Conversation:
    """Return the conversation of a row. Raises DataError if the row is invalid or the row's prompt is empty."""
    conversation = _conversation_from_row(row, where)
    refuse_empty_prompt(conversation, where)
    return conversation


def _conversation_from_row(row: Mapping[str, Any], where: str) -> Conversation:
    if row.get("messages") is not None:
        return read_messages(row["messages"], f"{where}: ")
    for ask, answer in PAIRS:
        if ask in row and answer in row and (row[ask] is not None or row[answer] is not None):
            reply = _assistant_message(_text_field(row, answer, where), _reasoning(row, where), where)
            return Message("user", _text_field(row, ask, where)), reply
    known = ["messages", *(key for pair in PAIRS for key in pair)]
    misspelt = next((key for key in row if suggest_name(key, known).startswith("Did")), "")
    raise DataError(
        f"not a conversation: the keys are {', '.join(sorted(row))}" if row else "not a conversation: no keys",
        where=where,
        remedy=f"{suggest_name(misspelt, known) if misspelt else ''} A row needs messages, prompt+completion or question+answer."
        " If the file belongs to a task, add task=NAME.".strip(),
    )


def read_messages(messages: Any, prefix: str = "") -> Conversation:
    """Parse a JSON list of messages. In error messages, the location of a fault begins with `prefix`, such as
    `file:line: `."""
    if not isinstance(messages, list) or not messages:
        fault = "an empty list" if isinstance(messages, list) else f"a {type(messages).__name__}, not a list"
        raise DataError(
            f"key 'messages' is {fault}", where=prefix.removesuffix(": "), remedy="Give a list of messages."
        )
    return tuple(_message(message, f"{prefix}message {number}") for number, message in enumerate(messages, start=1))


def _message(message: Any, where: str) -> Message:
    if not isinstance(message, dict):
        raise DataError(
            f"the message is a {type(message).__name__}, not an object",
            where=where,
            remedy="Give an object with role and content.",
        )
    roles: tuple[Role, ...] = get_args(Role)
    name = "system" if message.get("role") == "developer" else message.get("role")
    role = next((known for known in roles if known == name), None)
    if role is None:
        raise DataError(f"unknown role {name!r}", where=where, remedy=suggest_name(str(name), roles))
    calls = _tool_calls(message, where)
    content = "" if calls and message.get("content") is None else _content(message, where)
    reasoning = _reasoning(message, where)
    if role == "assistant":
        if (weight := message.get("weight", 1)) not in (0, 1):
            raise DataError(f"key 'weight' is {weight!r}", where=where, remedy="Give 0 (no loss) or 1.")
        return replace(_assistant_message(content, reasoning, where), tool_calls=calls, in_loss=bool(weight))
    if given := [what for what, value in (("reasoning", reasoning), ("calls", calls or None)) if value is not None]:
        raise DataError(
            f"a {role} turn has {given[0]}", where=where, remedy=f"Only assistant turns may have {given[0]}."
        )
    return Message(role, content, tool_call_id=message.get("tool_call_id") if role == "tool" else None)


def _tool_calls(message: Mapping[str, Any], where: str) -> tuple[ToolCall, ...]:
    calls = message.get("tool_calls") or ()
    try:
        return tuple(ToolCall(str(call["id"]), *_name_and_arguments(call["function"])) for call in calls)
    except (TypeError, KeyError, ValueError):
        raise DataError(
            "key 'tool_calls' is no list of calls", where=where, remedy=f"Give a list of {CALL_FORM}."
        ) from None


def _name_and_arguments(function: Mapping[str, Any]) -> tuple[str, str]:
    name, arguments = function["name"], function["arguments"]
    if not isinstance(name, str) or not isinstance(pydantic_core.from_json(arguments), dict):
        raise TypeError
    return name, arguments


def read_tools(row: Mapping[str, Any], where: str) -> tuple[Tool, ...]:
    """Return the tools in the key `tools` of a row, in OpenAI's form. Raises DataError if the key is invalid."""
    try:
        return tuple(_tool(tool["function"]) for tool in row.get("tools") or ())
    except (TypeError, KeyError, AttributeError):
        raise DataError("key 'tools' is no list of tools", where=where, remedy=f"Give a list of {TOOL_FORM}.") from None


def _tool(function: Mapping[str, Any]) -> Tool:
    tool = Tool(function["name"], function.get("description") or "", function.get("parameters") or {})
    if not (isinstance(tool.name, str) and isinstance(tool.description, str) and isinstance(tool.parameters, dict)):
        raise TypeError
    return tool


def _content(message: Mapping[str, Any], where: str) -> Content:
    if isinstance(message.get("content"), list):
        return read_content(message["content"], f"{where}: content")
    return _text_field(message, "content", where)


def _text_field(row: Mapping[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        fault = f"is a {type(value).__name__}, not text"
        fault = fault if value is not None else "is null" if key in row else "is missing"
        raise DataError(f"key '{key}' {fault}", where=where, remedy="Give text.")
    return value


def _reasoning(row: Mapping[str, Any], where: str) -> str | None:
    keys = [key for key in REASONING if row.get(key) is not None]
    return _text_field(row, keys[0], where) if keys else None


def _assistant_message(content: Content, reasoning: str | None, where: str) -> Message:
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


def refuse_empty_prompt(conversation: Conversation, where: str) -> None:
    """Raise a DataError if a user message of `conversation` is empty or only white space."""
    for number, message in enumerate(conversation, start=1):
        if message.role == "user" and is_blank_message(message):
            raise DataError(
                "an empty prompt",
                where=f"{where}: message {number}",
                remedy="Write text in the user turn, or remove the conversation.",
            )


def turns_to_text(turns: Sequence[Message]) -> str:
    """Return turns as one text. Several turns become "user: ...", "assistant: ..." and so on, with a blank line between two turns."""
    if len(turns) == 1:
        return turns[0].label
    return "\n\n".join(f"{turn.role}: {turn.label}" for turn in turns)


def text_to_turns(text: str) -> Conversation:
    """Return the turns of a text that `turns_to_text` wrote. Another text is one user turn, as is a text with an empty turn or with turns in
    an unusual order."""
    before, *parts = ROLE.split(text)
    turns = tuple(Message(role, content) for role, content in zip(parts[::2], parts[1::2], strict=True))  # type: ignore[arg-type]
    usual = DIALOGUE.fullmatch("".join(f"{turn.role} " for turn in turns)) and not any(map(is_blank_message, turns))
    return turns if usual and len(turns) > 1 and not before else (Message("user", text),)
