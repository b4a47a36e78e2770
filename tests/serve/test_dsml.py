"""Requests to a model of DeepSeek-V3.2's format: calls in DSML are streamed, and later requests hold them as they were written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rorqual.data.chat import chat_format
from rorqual.data.tokenizer import Tokenizer
from rorqual.serve.bridge import Bridge
from rorqual.serve.keys import Keys
from rorqual.serve.routes.chat import ChatShape
from rorqual.serve.schemas import ChatRequest, read
from rorqual.serve.service import Service
from rorqual.serve.wire import EngineArguments, Ready, SampledToken

CHAT = chat_format(Tokenizer.byte_level(), "deepseek-v3.2")
CITY = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
SPECS = [{"type": "function", "function": {"name": "get_weather", "description": "d", "parameters": CITY}}]
ASKED: list[dict[str, Any]] = [{"role": "user", "content": "Zürich?"}]
GIVEN = {"city": 'Zürich "Nord"\n', "days": 3}
CALLS = """<｜DSML｜function_calls>
<｜DSML｜invoke name="get_weather">
<｜DSML｜parameter name="city" string="true">Zürich "Nord"
</｜DSML｜parameter>
<｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>
</｜DSML｜invoke>
<｜DSML｜invoke name="get_weather">

</｜DSML｜invoke>
</｜DSML｜function_calls>"""


def shape(messages: list[dict[str, Any]] = ASKED, **fields: Any) -> ChatShape:
    bridge = Bridge(EngineArguments("nowhere"))
    bridge.info = Ready(16_384, CHAT.tokenizer.vocab_size)
    service = Service("v32", 0, CHAT, bridge, Keys(Path("none"), {}), 2**20)
    body = {"model": "v32", "messages": messages, "tools": SPECS, "chat_template_kwargs": {"thinking": True}} | fields
    return ChatShape(service, read(ChatRequest, json.dumps(body).encode())[0])


def answered(text: str, **fields: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The whole choice of a reply, and the parts of its stream."""
    asked = shape(**fields)
    choice, parts = asked.new(), list[dict[str, Any]]()
    for id_ in CHAT.tokenizer.encode_trusted(text):
        parts += asked.parts(0, choice.add(SampledToken(0, id_)), choice)
    parts += asked.parts(0, choice.add(SampledToken(0, CHAT.stop_ids[0], "stop")), choice)
    return asked.choice(0, choice), parts


def test_calls_are_streamed_as_the_whole_reply_has_them() -> None:
    whole, parts = answered(f"Where is it?</think>Let me see.\n\n{CALLS}")
    message = whole["message"]
    assert (whole["finish_reason"], message["content"]) == ("tool_calls", "Let me see.")
    assert message["reasoning_content"] == "Where is it?"
    assert [json.loads(call["function"]["arguments"]) for call in message["tool_calls"]] == [GIVEN, {}]
    deltas = [part["delta"] for part in parts]
    assert "".join(delta.get("content", "") for delta in deltas) == "Let me see."
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Where is it?"
    streamed = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert [call["index"] for call in streamed] == [0, 1]
    assert [{key: call[key] for key in ("id", "type", "function")} for call in streamed] == message["tool_calls"]
    assert parts[-1]["finish_reason"] == "tool_calls"


def test_a_call_that_is_cut_off_is_text() -> None:
    whole, parts = answered(f"</think>{CALLS[:120]}")
    assert whole["message"]["content"] == CALLS[:120] and "tool_calls" not in whole["message"]
    assert "".join(part["delta"].get("content", "") for part in parts) == CALLS[:120]
    assert whole["finish_reason"] == "stop"


def test_the_schema_of_an_answer_stands_in_the_prompt() -> None:
    schema = {"type": "object", "properties": {"temp": {"type": "integer"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    for fields in ({}, {"tools": None}):
        prompts = [
            CHAT.tokenizer.decode(shape(**fields, **more).asks()[0].prompt, specials=True)
            for more in ({}, {"response_format": {"type": "json_object"}}, {"response_format": wanted})
        ]
        before, after = prompts[0].split("<｜User｜>")
        section = f"\n\n## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n{json.dumps(schema)}"
        assert prompts[1:] == [prompts[0], f"{before}{section}<｜User｜>{after}"]
