"""Requests to a model of DeepSeek-V3.2's format: the schema of the answer stands in the prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rorqual.data.chat import chat_format
from rorqual.data.tokenizer import Tokenizer
from rorqual.serve.bridge import EngineBridge
from rorqual.serve.keys import ApiKeys
from rorqual.serve.routes.chat import ChatResponseBuilder
from rorqual.serve.schemas import ChatRequest, parse_request
from rorqual.serve.service import ModelService
from rorqual.serve.wire import EngineArguments, EngineLimits

CHAT = chat_format(Tokenizer.byte_level(), "deepseek-v3.2")
CITY = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
SPECS = [{"type": "function", "function": {"name": "get_weather", "description": "d", "parameters": CITY}}]
ASKED: list[dict[str, Any]] = [{"role": "user", "content": "Zürich?"}]


def shape(messages: list[dict[str, Any]] = ASKED, **fields: Any) -> ChatResponseBuilder:
    bridge = EngineBridge(EngineArguments("nowhere"))
    bridge.info = EngineLimits(16_384, CHAT.tokenizer.vocab_size)
    service = ModelService("v32", 0, ApiKeys(Path("none"), {}), 2**20, chat=CHAT, bridge=bridge)
    body = {"model": "v32", "messages": messages, "tools": SPECS, "chat_template_kwargs": {"thinking": True}} | fields
    return ChatResponseBuilder(service, parse_request(ChatRequest, json.dumps(body).encode())[0])


def test_the_schema_of_an_answer_stands_in_the_prompt() -> None:
    schema = {"type": "object", "properties": {"temp": {"type": "integer"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    for fields in ({}, {"tools": None}):
        prompts = [
            CHAT.tokenizer.decode(shape(**fields, **more).engine_requests()[0].prompt, specials=True)
            for more in ({}, {"response_format": {"type": "json_object"}}, {"response_format": wanted})
        ]
        before, after = prompts[0].split("<｜User｜>")
        section = f"\n\n## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n{json.dumps(schema)}"
        assert prompts[1:] == [prompts[0], f"{before}{section}<｜User｜>{after}"]
