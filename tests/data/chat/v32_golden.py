"""Conversations in DeepSeek-V3.2's format, and the file of what the published encoder writes of them.

`python tests/data/chat/v32_golden.py FOLDER` writes `golden/deepseek-v3.2.json` anew; FOLDER holds `encoding_dsv32.py`, which may not be kept
here. Our format has no part in it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "golden" / "deepseek-v3.2.json"
SOURCE = "deepseek-ai/DeepSeek-V3.2, encoding/encoding_dsv32.py, as copied into sglang 0.5.7 (srt/entrypoints/openai)"

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
MODES = {"on": "thinking", "off": "chat"}


def write(elsewhere: Path) -> None:
    """The golden file. Tools are given to the published encoder with the first system turn."""
    source = elsewhere / "encoding_dsv32.py"
    spec = importlib.util.spec_from_file_location("encoding_dsv32", source)
    assert spec is not None and spec.loader is not None
    published = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(published)
    tools_text = published.render_tools([])
    instructions = tools_text[: tools_text.index("<functions>\n")]
    lines = []
    for case, (messages, tools) in CASES.items():
        rows = [dict(row) for row in messages]
        if tools:
            rows = rows if rows[0]["role"] == "system" else [_system(""), *rows]
            rows[0]["tools"] = tools
        formats = [None, SCHEMA] if case in WITH_SCHEMA else [None]
        for thinking, mode, schema in ((*one, schema) for one in MODES.items() for schema in formats):
            first = rows[0] if rows[0]["role"] == "system" else _system("")
            rest = rows if first is not rows[0] else rows[1:]
            given = rows if schema is None else [first | {"response_format": schema}, *rest]
            text = published.encode_messages(given, thinking_mode=mode).replace(instructions, SHORT)
            line = {"case": case, "thinking": thinking, "schema": schema is not None, "text": text}
            lines.append(json.dumps(line, ensure_ascii=False))
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    said = json.dumps(instructions, ensure_ascii=False)
    head = f'"source": {json.dumps(SOURCE)},\n"sha256": "{digest}",\n"instructions": {said}'
    FILE.write_text("{\n" + head + ',\n"written": [\n' + ",\n".join(lines) + "\n]\n}\n", encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
