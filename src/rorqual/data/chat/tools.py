"""Validate conversations with tools, sort tool results, and write tool definitions as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rorqual.core.errors import DataError
from rorqual.core.records import Message, Tool
from rorqual.data.chat.calls import MAX_DEPTH, nested_too_deep


def has_tools(messages: Sequence[Message]) -> bool:
    """Return whether a conversation contains tool calls or tool turns."""
    return any(message.role == "tool" or message.tool_calls for message in messages)


def group_into_turns(messages: Sequence[Message]) -> list[list[Message]]:
    """Group the messages of a conversation into turns.

    The tool results that follow an assistant turn form one turn, sorted in the order of the calls. The order of the results
    matters, because templates write no call ids.

    Raises DataError in these cases:

    - The call of a tool result is missing, belongs to another turn or already has another result.
    - An assistant turn does not follow a user or tool turn.
    - A turn that is not an assistant turn has calls or reasoning.
    - The conversation does not end with a user or tool turn. System turns at the end are ignored.
    """
    grouped: list[list[Message]] = []
    before = ""
    for number, message in enumerate(messages, start=1):
        where = f"message {number}"
        calls = message.tool_calls
        if message.role == "assistant" and before not in ("user", "tool"):
            raise DataError(
                f"an assistant turn follows {before or 'no'} turn",
                where=where,
                remedy="Put a user turn or a tool turn before the assistant turn.",
            )
        if message.role != "assistant" and (calls or message.reasoning is not None):
            what = "calls" if calls else "reasoning"
            raise DataError(
                f"a {message.role} turn has {what}", where=where, remedy=f"Only assistant turns may have {what}."
            )
        if message.role == "tool":
            _check_result(message, grouped, where)
        if message.role == "tool" and before == "tool":
            grouped[-1].append(message)
        else:
            grouped.append([message])
        before = message.role if message.role != "system" else before
    if before not in ("user", "tool"):
        what = "the last turn is an assistant turn" if before else "the conversation has no user turn"
        raise DataError(what, where="messages", remedy="End with a user turn or a tool turn.")
    return [_sort_tool_results(turn, earlier) for earlier, turn in zip([[], *grouped], grouped)]


def _check_result(message: Message, grouped: Sequence[Sequence[Message]], where: str) -> None:
    """Raise a DataError unless the tool turn `message` is the first result for a call of the preceding assistant turn."""
    turn = list(grouped[-1]) if grouped else []
    answered = [result.tool_call_id for result in turn if result.role == "tool"]
    caller = (grouped[-2] if answered and len(grouped) > 1 else turn)[-1:]
    ids = [call.id for assistant in caller for call in assistant.tool_calls]
    if not ids:
        raise DataError(
            "the tool turn does not follow an assistant turn with tool calls",
            where=where,
            remedy="Put an assistant turn with tool calls before the tool turn.",
        )
    call_id = message.tool_call_id
    if call_id is None and len(answered) < len(ids):
        return
    if call_id not in ids or call_id in answered:
        fault = "a second result for" if call_id in answered else "a result for unknown"
        raise DataError(
            f"{fault} call {call_id!r}",
            where=where,
            remedy=f"The preceding assistant turn has the calls {', '.join(ids)}.",
        )


def _sort_tool_results(turn: list[Message], earlier: Sequence[Message]) -> list[Message]:
    if turn[0].role != "tool" or any(message.tool_call_id is None for message in turn):
        return turn
    place = {call.id: number for number, call in enumerate(earlier[-1].tool_calls)}
    return sorted(turn, key=lambda message: place[message.tool_call_id or ""])


def check_tools(tools: Sequence[Tool]) -> None:
    """Raise a DataError for a tool with an invalid or repeated name, or with parameters that cannot be written as JSON."""
    seen: set[str] = set()
    for number, tool in enumerate(tools, start=1):
        where = f"tool {number}"
        try:
            parameters = template_json(dict(tool.parameters))
        except (RecursionError, ValueError, TypeError) as error:
            raise DataError(
                f"the parameters cannot be written as JSON: {type(error).__name__}",
                where=where,
                remedy="Give a JSON schema.",
            ) from None
        if nested_too_deep(parameters):
            raise DataError(
                f"the parameters are nested deeper than {MAX_DEPTH} levels",
                where=where,
                remedy="Simplify the JSON schema.",
            )
        if not tool.name or any(char.isspace() or char in '"\\{}<>`' for char in tool.name):
            raise DataError(
                f"{tool.name!r} is not a valid tool name", where=where, remedy="Use letters, digits, '_', '-' and '.'."
            )
        if tool.name in seen:
            raise DataError(f"two tools are named {tool.name!r}", where=where, remedy="Give each tool its own name.")
        seen.add(tool.name)


def template_json(value: Any, indent: int | None = None) -> str:
    """Serialise `value` as JSON exactly as the `tojson` filter of transformers' chat templates does."""
    return json.dumps(value, ensure_ascii=False, indent=indent)
