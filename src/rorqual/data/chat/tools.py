"""Conversations with tools: validation, the order of tool results, and the JSON form of tools."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from rorqual.core.errors import DataError
from rorqual.core.records import Message, Tool
from rorqual.data.chat.calls import MAX_DEPTH, too_deep
from rorqual.data.chat.special_tokens import check_text


def has_tools(messages: Sequence[Message]) -> bool:
    """Return whether a conversation contains tool calls or tool results."""
    return any(message.role == "tool" or message.tool_calls for message in messages)


def turns(messages: Sequence[Message]) -> list[list[Message]]:
    """Check a conversation and return its turns. The results of one turn's calls form one turn, in the order of the calls.

    Templates write no call ids, so a result belongs to the call at the same position. Raises DataError for a result without
    a call, for the call of another turn, or for a call already answered. It also refuses an assistant turn that answers
    nothing, calls or reasoning in other roles, lone surrogates, and a conversation with nothing to answer.
    """
    found: list[list[Message]] = []
    before = ""
    for number, message in enumerate(messages, start=1):
        where = f"message {number}"
        calls = message.tool_calls
        check_text([message.label, message.reasoning or "", *(c.name + c.arguments for c in calls)], where)
        if message.role == "assistant" and before not in ("user", "tool"):
            raise DataError(
                f"an assistant turn follows {before or 'no'} turn",
                where=where,
                remedy="Put a user turn or a tool turn before it.",
            )
        if message.role != "assistant" and (calls or message.reasoning is not None):
            what = "calls" if calls else "reasoning"
            raise DataError(
                f"a {message.role} turn has {what}", where=where, remedy=f"Only assistant turns may have {what}."
            )
        if message.role == "tool":
            _check_answer(message, found, where)
        if message.role == "tool" and before == "tool":
            found[-1].append(message)
        else:
            found.append([message])
        before = message.role if message.role != "system" else before
    if before not in ("user", "tool"):
        what = "the last turn is an assistant turn" if before else "the conversation has no user turn"
        raise DataError(what, where="messages", remedy="End with a user turn or a tool turn.")
    return [_in_order(turn, earlier) for earlier, turn in zip([[], *found], found)]


def _check_answer(message: Message, found: Sequence[Sequence[Message]], where: str) -> None:
    turn = list(found[-1]) if found else []
    answered = [one.tool_call_id for one in turn if one.role == "tool"]
    asked = (found[-2] if answered and len(found) > 1 else turn)[-1:]
    ids = [call.id for one in asked for call in one.tool_calls]
    if not ids:
        raise DataError(
            "a tool turn follows no tool call", where=where, remedy="Put an assistant turn with tool calls before it."
        )
    given = message.tool_call_id
    if given is None and len(answered) < len(ids):
        return
    if given not in ids or given in answered:
        fault = "a second result for" if given in answered else "a result for unknown"
        raise DataError(f"{fault} call {given!r}", where=where, remedy=f"The calls before it are {', '.join(ids)}.")


def _in_order(turn: list[Message], earlier: Sequence[Message]) -> list[Message]:
    if turn[0].role != "tool" or any(message.tool_call_id is None for message in turn):
        return turn
    place = {call.id: number for number, call in enumerate(earlier[-1].tool_calls)}
    return sorted(turn, key=lambda message: place[message.tool_call_id or ""])


def check_tools(tools: Sequence[Tool]) -> None:
    """Raise a DataError for an unusable tool: an invalid or repeated name, or parameters that are not valid JSON."""
    seen: set[str] = set()
    for number, tool in enumerate(tools, start=1):
        where = f"tool {number}"
        try:
            parameters = spelt(dict(tool.parameters))
        except (RecursionError, ValueError, TypeError) as error:
            raise DataError(
                f"its parameters cannot be written as JSON: {type(error).__name__}",
                where=where,
                remedy="Give a JSON schema.",
            ) from None
        if too_deep(parameters):
            raise DataError(
                f"its parameters are nested deeper than {MAX_DEPTH} levels", where=where, remedy="Nest them less."
            )
        check_text([tool.name, tool.description, parameters], where)
        if not tool.name or any(char.isspace() or char in '"\\{}<>`' for char in tool.name):
            raise DataError(
                f"{tool.name!r} is not a valid tool name", where=where, remedy="Use letters, digits, '_', '-' and '.'."
            )
        if tool.name in seen:
            raise DataError(f"two tools are named {tool.name!r}", where=where, remedy="Give each tool its own name.")
        seen.add(tool.name)


def schema(tool: Tool) -> dict[str, Any]:
    """Return a tool in the form of OpenAI's API, which chat templates expect."""
    described = {"description": tool.description} if tool.description else {}
    return {"type": "function", "function": {"name": tool.name, **described, "parameters": dict(tool.parameters)}}


def spelt(value: Any, indent: int | None = None) -> str:
    """Return JSON in the form that transformers' chat templates write."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def schemas(tools: Sequence[Tool]) -> Iterator[str]:
    return (spelt(schema(tool)) for tool in tools)
