"""Conversations with tools: what is refused, in which order the answers of tools stand, and how tools are spelt."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from rorqual.core.errors import DataError
from rorqual.core.records import Message, Tool
from rorqual.data.chat.calls import MAX_DEPTH, too_deep
from rorqual.data.chat.marks import check_text


def has_tools(messages: Sequence[Message]) -> bool:
    """Whether a conversation has calls, or answers to them."""
    return any(message.role == "tool" or message.tool_calls for message in messages)


def turns(messages: Sequence[Message]) -> list[list[Message]]:
    """The turns of a conversation, checked: answers to one turn's calls are one turn, in the order of the calls.

    Templates write no ids: an answer belongs to the call at its place. Refused: an answer to no call or to another turn's, two to one
    call, an assistant that speaks to no one, calls or reasoning of anyone else, half of a surrogate pair, nobody to answer.
    """
    found: list[list[Message]] = []
    before = ""
    for number, message in enumerate(messages, start=1):
        where = f"message {number}"
        calls = message.tool_calls
        check_text([message.label, message.reasoning or "", *(c.name + c.arguments for c in calls)], where)
        if message.role == "assistant" and before not in ("user", "tool"):
            raise DataError(
                f"an assistant turn after {before or 'nothing'}",
                where=where,
                remedy="An assistant answers a user's turn or a tool's.",
            )
        if message.role != "assistant" and (calls or message.reasoning is not None):
            what = "calls" if calls else "reasoning"
            raise DataError(f"a {message.role} turn with {what}", where=where, remedy="Only the assistant has them.")
        if message.role == "tool":
            _check_answer(message, found, where)
        if message.role == "tool" and before == "tool":
            found[-1].append(message)
        else:
            found.append([message])
        before = message.role if message.role != "system" else before
    if before not in ("user", "tool"):
        what = "the last turn is the assistant's own" if before else "a conversation without a user turn"
        raise DataError(what, where="messages", remedy="End with a user's turn or a tool's.")
    return [_in_order(turn, earlier) for earlier, turn in zip([[], *found], found)]


def _check_answer(message: Message, found: Sequence[Sequence[Message]], where: str) -> None:
    turn = list(found[-1]) if found else []
    answered = [one.tool_call_id for one in turn if one.role == "tool"]
    asked = (found[-2] if answered and len(found) > 1 else turn)[-1:]
    ids = [call.id for one in asked for call in one.tool_calls]
    if not ids:
        raise DataError(
            "a tool's turn without a call before it", where=where, remedy="A tool answers an assistant's call."
        )
    given = message.tool_call_id
    if given is None and len(answered) < len(ids):
        return
    if given not in ids or given in answered:
        fault = "a second answer to" if given in answered else "an answer to an unknown"
        raise DataError(f"{fault} call {given!r}", where=where, remedy=f"The calls before it are {', '.join(ids)}.")


def _in_order(turn: list[Message], earlier: Sequence[Message]) -> list[Message]:
    if turn[0].role != "tool" or any(message.tool_call_id is None for message in turn):
        return turn
    place = {call.id: number for number, call in enumerate(earlier[-1].tool_calls)}
    return sorted(turn, key=lambda message: place[message.tool_call_id or ""])


def check_tools(tools: Sequence[Tool]) -> None:
    """Refuse tools that no call could name: without a name, with white space in it, or two of one name."""
    seen: set[str] = set()
    for number, tool in enumerate(tools, start=1):
        where = f"tool {number}"
        try:
            parameters = spelt(dict(tool.parameters))
        except (RecursionError, ValueError, TypeError) as error:
            raise DataError(
                f"parameters that no JSON can hold: {type(error).__name__}", where=where, remedy="Give a JSON schema."
            ) from None
        if too_deep(parameters):
            raise DataError(f"parameters of more than {MAX_DEPTH} levels", where=where, remedy="Nest them less.")
        check_text([tool.name, tool.description, parameters], where)
        if not tool.name or any(char.isspace() or char in '"\\{}<>`' for char in tool.name):
            raise DataError(
                f"{tool.name!r} is no name of a tool", where=where, remedy="Use letters, digits, '_', '-' and '.'."
            )
        if tool.name in seen:
            raise DataError(f"two tools are called {tool.name!r}", where=where, remedy="Give each a name of its own.")
        seen.add(tool.name)


def schema(tool: Tool) -> dict[str, Any]:
    """A tool as OpenAI's API writes it, and templates expect it."""
    described = {"description": tool.description} if tool.description else {}
    return {"type": "function", "function": {"name": tool.name, **described, "parameters": dict(tool.parameters)}}


def spelt(value: Any, indent: int | None = None) -> str:
    """JSON as transformers' templates write it."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def schemas(tools: Sequence[Tool]) -> Iterator[str]:
    return (spelt(schema(tool)) for tool in tools)
