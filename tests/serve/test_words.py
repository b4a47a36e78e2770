"""A refusal is a sentence: it names the field as the user wrote it, says what is wrong and what to do, and shows nothing of how requests are
read."""

from __future__ import annotations

import inspect
import json
import re
from typing import Any

import pytest
from served import Server

from rorqual.core.errors import ConfigError
from rorqual.core.records import RunDir
from rorqual.serve import formats, schemas, turns
from rorqual.serve.errors import ApiError
from rorqual.serve.schemas import ChatRequest, Sampling, TextRequest, read
from rorqual.serve.service import read_defaults

HELLO = [{"role": "user", "content": "hello"}]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = {"id": "c", "type": "function", "function": {"name": "add", "arguments": "{}"}}
FORM = {"type": "json_schema", "json_schema": {"name": "s", "schema": {}}}
CLASSES = {
    name
    for module in (schemas, turns, formats)
    for name, one in inspect.getmembers(module, inspect.isclass)
    if issubclass(one, formats.Schema)
}
INTERNAL = re.compile(
    r"Input should|function-|\[key\]|Value error|pydantic|constrained|tuple|\bdict\b|\bstr\b|\bNone\b|\bTrue\b|"
    + "|".join(CLASSES - {"Text", "Function"})
)


def part(**fields: Any) -> dict[str, Any]:
    return {"messages": [*HELLO, HELLO[0], {"role": "user", "content": [fields]}]}


def turn(**fields: Any) -> dict[str, Any]:
    return {"messages": [*HELLO, {"role": "assistant", "content": "x", **fields}]}


PICTURE = part(type="text", text="What is it?")
PICTURE["messages"][2]["content"].append({"type": "image_url", "image_url": {"url": "http://x/"}})

CHAT: dict[str, tuple[dict[str, Any], str, str]] = {
    "a picture by another name": (part(type="input_image", image_url="x"), "messages[2].content[0]", "does not accept images"),
    "a picture without an address": (part(type="image_url", image_url={}), "messages[2].content[0].image_url.url", "is missing"),
    "a picture seen from afar": (
        part(type="image_url", image_url={"url": "x", "detail": "far"}),
        "messages[2].content[0].image_url.detail",
        "It must be 'auto', 'low' or 'high'",
    ),
    "a field of a part": (part(type="text", text="x", img=1), "messages[2].content[0].img", "is not a field"),
    "a part of no type": (part(text="x"), "messages[2].content[0].type", "is missing"),
    "a sound": (part(type="input_audio", input_audio={}), "messages[2].content[0]", "does not accept audio"),
    "a film": (part(type="video_url", video_url={}), "messages[2].content[0]", "does not accept videos"),
    "a file": (part(type="file", file={}), "messages[2].content[0]", "does not accept files"),
    "a part of another type": (part(type="poem", text="x"), "messages[2].content[0].type", "'text', 'image_url'"),
    "a part without a text": (part(type="text"), "messages[2].content[0].text", "is missing"),
    "a part that is a text": ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]", "must be an object"),
    "a content of a number": ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "a valid string or a valid list"),
    "no role": ({"messages": [{"content": "x"}]}, "messages[0].role", "is missing"),
    "another role": ({"messages": [{"role": "boss", "content": "x"}]}, "messages[0].role", "'system'"),
    "a message that is a text": ({"messages": ["x"]}, "messages[0]", "must be an object"),
    "messages that are a text": ({"messages": "x"}, "messages", "a valid list"),
    "no messages": ({"messages": None}, "messages", "a valid list"),
    "few messages": ({"messages": []}, "messages", "at least 1 item"),
    "a mistyped field of a message": (turn(contnet="x"), "messages[1].contnet", "Did you mean 'content'?"),
    "a name of a message": (turn(name=5), "messages[1].name", "a valid string"),
    "a turn to continue": (turn(prefix=True), "messages[1].prefix", "cannot continue"),
    "an old call": (turn(function_call={"name": "x"}), "messages[1].function_call", "tool_calls"),
    "an old sound": (turn(audio={"id": "x"}), "messages[1].audio", "audio"),
    "a call without a function": (turn(tool_calls=[{"id": "c"}]), "messages[1].tool_calls[0].function", "is missing"),
    "arguments as an object": (
        turn(tool_calls=[{**CALL, "function": {"name": "add", "arguments": {}}}]),
        "messages[1].tool_calls[0].function.arguments",
        "a valid string",
    ),
    "NUL": ({"messages": [{"role": "user", "content": "a\0"}]}, "messages[0].content", "NUL"),
    "NUL in a stop": ({"stop": "a\0"}, "stop", "NUL"),
    "a number as text": ({"max_tokens": "5"}, "max_tokens", "is '5'. It must be a valid integer"),
    "half a token": ({"max_tokens": 1.5}, "max_tokens", "is 1.5. It must be a valid integer"),
    "no tokens": ({"max_tokens": 0}, "max_tokens", "is 0. It must be greater than or equal to 1"),
    "too hot": ({"temperature": 5}, "temperature", "is 5. It must be less than or equal to 2"),
    "no mass": ({"top_p": 0}, "top_p", "greater than 0"),
    "truth as a number": ({"stream": 1}, "stream", "is 1. It must be a valid boolean"),
    "a seed of text": ({"seed": "x"}, "seed", "a valid integer"),
    "many stops": ({"stop": ["a"] * 17}, "stop", "has 17 entries; at most 16 are allowed"),
    "a stop of a number": ({"stop": 5}, "stop", "a valid string or a valid list"),
    "a long stop": ({"stop": ["a" * 300]}, "stop[0]", "at most 256 items"),
    "a bias as a list": ({"logit_bias": [[5, 1]]}, "logit_bias", "an object"),
    "a bias of a word": ({"logit_bias": {"whale": 1}}, "logit_bias", "'whale'"),
    "a bias that is a text": ({"logit_bias": {"5": "x"}}, "logit_bias.'5'", "a valid number"),
    "a tool of the house": ({"tools": [{"type": "web_search"}]}, "tools[0].type", "'function'"),
    "a custom tool": ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0]", "custom tools"),
    "a tool without a function": ({"tools": [{"type": "function"}]}, "tools[0].function", "is missing"),
    "a tool named with a blank": (
        {"tools": [{"type": "function", "function": {"name": "a b"}}]},
        "tools[0].function.name",
        "match pattern",
    ),
    "another choice of tools": ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice", "'required'"),
    "some of the tools": (
        {"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "allowed_tools": {}}},
        "tool_choice",
        "some of the tools",
    ),
    "a choice of no function": ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice.function", "missing"),
    "a form of its own": ({"response_format": {"type": "yaml"}}, "response_format.type", "'json_object'"),
    "a form as a text": ({"response_format": "json"}, "response_format", "an object"),
    "a structural tag": ({"response_format": {"type": "structural_tag"}}, "response_format", "structural tags"),
    "a schema in the wrong place": (
        {"response_format": {"type": "json_object", "schema": {}}},
        "response_format.schema",
        "json_schema",
    ),
    "a schema without a name": (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
        "response_format.json_schema.name",
        "missing",
    ),
    "a schema as a list": ({"guided_json": []}, "guided_json", "an object or a valid string"),
    "options of no stream": ({"stream_options": {}}, "stream_options", "stream: true"),
    "options mistyped": ({"stream_options": {"include_usages": True}}, "stream_options.include_usages", "'include_usage'"),
    "usage all the time": (
        {"stream": True, "stream_options": {"continuous_usage_stats": True}},
        "stream_options.continuous_usage_stats",
        "last event",
    ),
    "a budget": ({"thinking": {"type": "enabled", "budget_tokens": 5}}, "thinking.budget_tokens", "max_tokens"),
    "an argument of a template": ({"chat_template_kwargs": {"thinkin": True}}, "chat_template_kwargs.thinkin", "'thinking'"),
    "a mistyped field": ({"temprature": 1}, "temprature", "Did you mean 'temperature'?"),
    "a field of nobody": ({"zzzzzz": 1}, "zzzzzz", "docs/how-to/serve.md"),
    "a field with a blank": ({"a\nb": 1}, "'a\\nb'", "docs/how-to/serve.md"),
    "an alias": ({"switch": {"type": "enabled"}}, "switch", "is not a field"),
    "no stop": ({"stop": ""}, "stop", "at least 1"),
    "to think and not to": ({"thinking": {"type": "disabled"}, "reasoning_effort": "low"}, "reasoning_effort", "contradict"),
    "a mistyped function": (
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "ad"}}},
        "tool_choice",
        "Did you mean 'add'",
    ),
    "a field of completions": ({"prompt": "x"}, "prompt", "/v1/completions"),
}  # fmt: skip
TEXTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "no prompt": ({}, "prompt", "is missing"),
    "an empty list": ({"prompt": []}, "prompt", "at least 1 item"),
    "a truth": ({"prompt": True}, "prompt", "a valid string or a valid list"),
    "a token below 0": ({"prompt": [-1]}, "prompt[0]", "greater than or equal to 0"),
    "texts and ids": ({"prompt": ["a", 1]}, "prompt[1]", "a valid string"),
    "ids and texts": ({"prompt": [[1], "a"]}, "prompt[1]", "a valid list"),
    "a field of chat": ({"prompt": "x", "messages": HELLO}, "messages", "/v1/chat/completions"),
    "the chat's switch": ({"prompt": "x", "logprobs": True}, "logprobs", "a valid integer"),
}


def check(error: dict[str, Any], path: str, words: str) -> None:
    message = error["message"]
    assert error["param"] == path and f"`{path}`" in message, error
    assert words in message, message
    assert not INTERNAL.search(message), message
    assert re.search(r"[.?:] \S.*[.?]$", message), f"what is wrong, and then the remedy: {message}"
    assert len(message) < 400


def refusal(cls: type[Sampling], body: dict[str, Any]) -> dict[str, Any]:
    with pytest.raises(ApiError) as caught:
        read(cls, json.dumps(body).encode())
    assert caught.value.status == 400
    error: dict[str, Any] = caught.value.body()["error"]
    return error


@pytest.mark.parametrize("name", CHAT)
def test_a_refusal_of_a_chat_is_a_sentence(name: str) -> None:
    fields, path, words = CHAT[name]
    check(refusal(ChatRequest, {"model": "m", "messages": HELLO, **fields}), path, words)


@pytest.mark.parametrize("name", TEXTS)
def test_a_refusal_of_a_text_is_a_sentence(name: str) -> None:
    fields, path, words = TEXTS[name]
    check(refusal(TextRequest, {"model": "m", **fields}), path, words)


def test_what_only_the_server_knows_is_said_in_sentences(server: Server) -> None:
    chat: dict[str, Any] = {"model": "tiny", "messages": HELLO}
    with server.client as client:
        for route, body, path, words in (
            ("chat/completions", chat | {"model": "other"}, "model", "'tiny'"),
            ("chat/completions", chat | {"logit_bias": {"999": 1}}, "logit_bias", "0 to 263"),
            ("chat/completions", chat | {"messages": [{"role": "user", "content": "a" * 5000}]}, "messages", "Shorten"),
            ("chat/completions", chat | PICTURE, "messages[2].content[1]", "does not accept images"),
            ("completions", {"model": "tiny", "prompt": [999]}, "prompt", "0 to 263"),
            ("completions", {"model": "tiny", "prompt": [1] * 4096}, "prompt", "Shorten"),
        ):
            check(client.post(f"/v1/{route}", json=body).json()["error"], path, words)
        check(client.get("/v1/models/other").json()["error"], "model", "'tiny'")
        for raw in (b'{"model":', b"[]", b"5", b'{"n":1,"n":2}'):
            message = client.post("/v1/completions", content=raw).json()["error"]["message"]
            assert message.startswith("The body") and message.endswith("Send one JSON object."), message


def test_a_run_whose_settings_no_request_could_give_says_so_in_words(tmp_path: Any) -> None:
    run = RunDir(tmp_path)
    run.config_file.write_text("generation: {top_p: 3}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"`top_p` is 3\. It must be less than or equal to 1") as caught:
        read_defaults(run)
    assert not INTERNAL.search(str(caught.value))
