"""Conversations in DeepSeek-V3.2's format, and the file of what the published encoder writes of them.

`golden/deepseek-v3.2.json` holds what `encode_messages` of the published `encoding_dsv32.py` writes of `CASES` in its modes `thinking` and
`chat`. Tools and schema were given to it with the first system turn. The file names the encoder's source, which may not be kept here. Our format
had no part in it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "golden" / "deepseek-v3.2.json"

Row = dict[str, Any]


def _system(text: str) -> Row:
    return {"role": "system", "content": text}


def _user(text: str) -> Row:
    return {"role": "user", "content": text}


def _said(text: str, reasoning: str | None = None, *calls: tuple[str, Any]) -> Row:
    row: Row = {"role": "assistant", "content": text}
    if reasoning is not None:
        row["reasoning_content"] = reasoning
    if calls:
        row["tool_calls"] = [
            {
                "id": f"call_{number}",
                "type": "function",
                "function": {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)},
            }
            for number, (name, arguments) in enumerate(calls)
        ]
    return row


def _result(text: str, number: int = 0) -> Row:
    return {"role": "tool", "content": text, "tool_call_id": f"call_{number}"}


def _tool(name: str, description: str, **properties: Any) -> Row:
    schema = {"type": "object", "properties": properties, "required": [*properties][:1]}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


WEATHER = _tool("get_weather", "Météo <é> & 'now': 天气.", city={"type": "string"}, days={"type": "integer"})
ADD = _tool("add", "Adds.", a={"type": "number"}, b={"type": ["number", "null"]})
CITY, SUM = ("get_weather", {"city": "Zürich"}), ("add", {"a": 1, "b": 2.5})
EVERY_TYPE = {
    "text": 'a "quoted" <b>\n  second line ',
    "empty": "",
    "like a number": "12",
    "whole": -3,
    "real": 0.125,
    "large": 12345678901234567890,
    "yes": True,
    "nothing": None,
    "list": [1, "zwei", [None, {"k": "v"}]],
    "object": {"ключ": "значение", "emoji": "🐋", "nested": {"a": []}},
    "名": "値",
}

CASES: dict[str, tuple[list[Row], list[Row]]] = {
    "a question": ([_user("What is 17 + 4?")], []),
    "a system turn": ([_system("You are brief.\n\nAlways."), _user("Hi")], []),
    "several turns": (
        [_system("Be kind."), _user("A?"), _said("B.", "First."), _user("C é 🐋?"), _said("D.\n"), _user("  E?\n")],
        [],
    ),
    "answered": ([_user("A?"), _said("B.", "First."), _user("C?"), _said("It is 21.\n\nSo.", "17 and 4.\n\n21.")], []),
    "two user turns": ([_user("A?"), _user("B?")], []),
    "two user turns, then more": ([_user("A?"), _user("B?"), _said("C.", "Hm."), _system("Now be rude."), _user("D?")], []),
    "tools without a system turn": ([_user("Zürich?")], [WEATHER]),
    "tools after a system turn": ([_system("You are brief."), _user("Zürich?")], [WEATHER, ADD]),
    "a call and its result": ([_user("Zürich?"), _said("", "Look.", CITY), _result('{"temp": 20, "sky": "晴れ"}')], [WEATHER]),
    "two calls": (
        [_system("S."), _user("Both?"), _said("Let me see.", "Two.", CITY, SUM), _result("20"), _result("3.5", 1)],
        [WEATHER, ADD],
    ),
    "three rounds": (
        [
            _user("All?"),
            _said("", "One.", CITY),
            _result("20"),
            _said("So far so good.", "Two.\n", SUM),
            _result("3.5"),
            _said("", "Three.", CITY, CITY),
            _result("19"),
            _result("18", 1),
        ],
        [WEATHER, ADD],
    ),
    "asked again": (
        [
            _user("Zürich?"),
            _said("", "Old thought.", CITY),
            _result("20"),
            _said("It is 20.", "Old too."),
            _user("And the sum?"),
            _said("", "New thought.", SUM),
            _result("3.5"),
        ],
        [WEATHER, ADD],
    ),
    "asked again before an answer": (
        [_user("Zürich?"), _said("", "Old.", CITY), _result("20"), _user("Never mind. A?")],
        [WEATHER],
    ),
    "every type": ([_user("?"), _said("", "Hm.", ("mix", EVERY_TYPE)), _result("ok")], [_tool("mix", "Mixes.")]),
    "no arguments": ([_user("?"), _said("", "Hm.", ("now", {})), _result("")], [_tool("now", "The time.")]),
    "calls without a thought": ([_user("?"), _said("See:", None, CITY), _result("20")], [WEATHER]),
    "calls, no longer offered": ([_user("?"), _said("", "Hm.", CITY), _result("<b>\n20</b>"), _said("20"), _user("!")], []),
}  # fmt: skip
"""(messages, tools) of each case, in the form of OpenAI's API."""
SHORT = "{instructions}"
"""Stands in the file for the instructions before the tools, which the file holds once."""
SCHEMA = {"type": "object", "properties": {"天": {"enum": ["a", 1, None]}}, "required": ["天"]}
WITH_SCHEMA = ("a question", "tools after a system turn", "two calls")
"""Cases that are written a second time, with a schema that the answer must match."""
