"""A refusal names the field as the user wrote it, and its value; a mistyped field gets the nearest name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rorqual.core.errors import ConfigError
from rorqual.core.records import RunDir
from rorqual.serve.errors import ApiError
from rorqual.serve.schemas import ChatRequest, GenerationRequest, TextRequest, parse_request
from rorqual.serve.service import read_defaults

HELLO = [{"role": "user", "content": "hello"}]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def part(**fields: Any) -> dict[str, Any]:
    return {"messages": [*HELLO, HELLO[0], {"role": "user", "content": [fields]}]}


def turn(**fields: Any) -> dict[str, Any]:
    return {"messages": [*HELLO, {"role": "assistant", "content": "x", **fields}]}


CASES: list[tuple[dict[str, Any], str, str]] = [
    # the fields, the path of the refused one, and a part of the message
    (part(type="image_url", image_url={}), "messages[2].content[0].image_url.url", "is missing"),
    (
        part(type="image_url", image_url={"url": "x", "detail": "far"}),
        "messages[2].content[0].image_url.detail",
        "'high'",
    ),
    (part(type="text", text="x", img=1), "messages[2].content[0].img", "is not a field"),
    (part(type="input_audio", input_audio={}), "messages[2].content[0]", "does not accept audio"),
    (part(type="poem", text="x"), "messages[2].content[0]", "'poem'"),
    ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]", "object"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "is 5. Input should be a valid string; or"),
    ({"messages": [{"content": "x"}]}, "messages[0].role", "is missing"),
    ({"messages": [{"role": "boss", "content": "x"}]}, "messages[0].role", "'system'"),
    (turn(contnet="x"), "messages[1].contnet", "is not a field"),
    (turn(prefix=True), "messages[1].prefix", "cannot continue"),
    (turn(tool_calls=[{"id": "c"}]), "messages[1].tool_calls[0].function", "is missing"),
    ({"messages": [{"role": "user", "content": "a\0"}]}, "messages[0].content", "NUL"),
    ({"stop": "a\0"}, "stop", "NUL"),
    ({"max_tokens": "5"}, "max_tokens", 'is "5". Input should be a valid integer'),
    ({"stop": ["a"] * 17}, "stop", "at most 16"),
    ({"stop": ["a" * 300]}, "stop[0]", "at most 256"),
    ({"logit_bias": {"5": "x"}}, "logit_bias", "token 5 is not a number"),
    ({"logit_bias": {"05": 1}}, "logit_bias", "all keys must be token ids"),
    ({"stop": 5}, "stop", "a valid list"),
    ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0]", "custom tools"),
    ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice.function", "missing"),
    ({"response_format": {"type": "yaml"}}, "response_format.type", "'json_object'"),
    ({"temprature": 1}, "temprature", "Did you mean 'temperature'?"),
    ({"zzzzzz": 1}, "zzzzzz", "is not a field"),
    ({"switch": {"type": "enabled"}}, "switch", "is not a field"),
    ({"prompt": "x"}, "prompt", "/v1/completions"),
]
TEXTS: list[tuple[dict[str, Any], str, str]] = [
    ({}, "prompt", "is missing"),
    ({"prompt": []}, "prompt", "at least 1 item"),
    ({"prompt": [-1]}, "prompt[0]", "greater than or equal to 0"),
    ({"prompt": ["a", 1]}, "prompt[1]", "a valid string"),
    ({"prompt": "x", "messages": HELLO}, "messages", "/v1/chat/completions"),
]


@pytest.mark.parametrize(
    ("cls", "body", "path", "words"),
    [
        *((ChatRequest, {"messages": HELLO, **fields}, path, words) for fields, path, words in CASES),
        *((TextRequest, *case) for case in TEXTS),
    ],
)
def test_a_refusal_names_the_field(cls: type[GenerationRequest], body: dict[str, Any], path: str, words: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse_request(cls, json.dumps({"model": "m", **body}).encode())
    error = caught.value
    assert (error.status, error.param) == (400, path), error.message
    assert f"`{path}`" in error.message and words in error.message and len(error.message) < 1000, error.message


def test_a_run_whose_settings_no_request_could_give_says_so(tmp_path: Any) -> None:
    run = RunDir(tmp_path)
    run.config_file.write_text("generation: {top_p: 3}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"`top_p` is 3\. .* less than or equal to 1"):
        read_defaults(run)
