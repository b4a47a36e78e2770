"""Poisons: each is refused with 400 and names what is wrong; its nearest valid twin is taken."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rorqual.core.content_parts import TextPart
from rorqual.core.records import Message, Tool, ToolCall
from rorqual.core.sampling import Grammar
from rorqual.serve.errors import ApiError
from rorqual.serve.schemas import ChatRequest, TextRequest, parse_request

HELLO = [{"role": "user", "content": "hello"}]
BASE: dict[str, Any] = {"model": "m", "messages": HELLO}


def body(**fields: Any) -> bytes:
    return json.dumps(BASE | fields).encode()


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def with_text(escaped: str) -> bytes:
    return b'{"model":"m","messages":[{"role":"user","content":"' + escaped.encode() + b'"}]}'


SCHEMA: dict[str, Any] = {"name": "s", "schema": {"type": "object"}}
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
OTHER: dict[str, Any] = {"type": "function", "function": {"name": "sub", "description": "a - b", "strict": True}}
CALL: dict[str, Any] = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
POISONS: dict[str, tuple[bytes, bytes, str | None]] = {
    "not JSON": (b'{"model":', body(), None),
    "a list": (b"[]", body(), None),
    "nothing": (b"", body(), None),
    "nested without end": (
        b'{"model":"m","messages":' + nested(100_000).encode() + b"}",
        body(metadata=json.loads(nested(20))),
        None,
    ),
    "half a surrogate pair": (with_text("\\ud83d"), with_text("\\ud83d\\udc0b"), None),
    "NUL": (with_text("a\\u0000"), with_text("a\\u0001"), "messages[0].content"),
    "a raw NUL": (with_text("a\0"), with_text("a"), None),
    "not UTF-8": (body()[:-1] + b',"user":"\xff"}', body(user="x"), None),
    "NaN": (body()[:-1] + b',"temperature":NaN}', body(temperature=0.5), None),
    "n = 1e9": (body(n=1e9), body(n=2), "n"),
    "n = 1000000000": (body(n=10**9), body(n=128), "n"),
    "n = 0": (body(n=0), body(n=1), "n"),
    "n = true": (body(n=True), body(n=1), "n"),
    "a number as text": (body(max_tokens="5"), body(max_tokens=5), "max_tokens"),
    "max_tokens 0": (body(max_tokens=0), body(max_tokens=1), "max_tokens"),
    "max_tokens huge": (body(max_tokens=10**30), body(max_tokens=10**9), "max_tokens"),
    "a number of many digits": (body()[:-1] + b',"seed":' + b"9" * 6000 + b"}", body(seed=2**63 - 1), None),
    "temperature -1": (body(temperature=-1), body(temperature=0), "temperature"),
    "temperature infinite": (body()[:-1] + b',"temperature":1e999}', body(temperature=2), "temperature"),
    "top_p 0": (body(top_p=0), body(top_p=1e-9), "top_p"),
    "a million stops": (body(stop=["a"] * 10**6), body(stop=["a"] * 16), None),
    "an empty stop": (body(stop=[""]), body(stop=[" "]), "stop"),
    "no messages": (body(messages=[]), body(), "messages"),
    "messages as text": (body(messages="hi"), body(), "messages"),
    "a role of its own": (
        body(messages=[{"role": "boss", "content": "x"}]),
        body(messages=[{"role": "developer", "content": "x"}, *HELLO]),
        "messages[0].role",
    ),
    "a picture": (
        body(messages=[{"role": "user", "content": [{"type": "input_image", "image_url": "http://x/"}]}]),
        body(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/"}}]}]),
        "messages[0].content[0]",
    ),
    "an unknown parameter": (body(temprature=1), body(temperature=1), "temprature"),
    "a tool without a function": (body(tools=[{"type": "function"}]), body(tools=[TOOL]), "tools[0].function"),
    "a tool of the house": (body(tools=[{"type": "web_search"}]), body(tools=[]), "tools[0].type"),
    "a tool with a name of blanks": (
        body(tools=[{"type": "function", "function": {"name": "a b"}}]),
        body(tools=[{"type": "function", "function": {"name": "a_b"}}]),
        "tools[0].function.name",
    ),
    "two tools of one name": (body(tools=[TOOL, TOOL]), body(tools=[TOOL, OTHER]), "tools"),
    "a tool that must be called, and there is none": (
        body(tools=[], tool_choice="required"),
        body(tools=[TOOL], tool_choice="required"),
        "tool_choice",
    ),
    "a tool that must be called, and is not there": (
        body(tools=[TOOL, OTHER], tool_choice={"type": "function", "function": {"name": "ad"}}),
        body(tools=[TOOL, OTHER], tool_choice={"type": "function", "function": {"name": "add"}}),
        "tool_choice",
    ),
    "a choice of another kind": (
        body(tools=[TOOL], tool_choice="any"),
        body(tools=[TOOL], tool_choice="required"),
        "tool_choice",
    ),
    "a tool that must be called, and a grammar": (
        body(tools=[TOOL], tool_choice="required", guided_regex="a"),
        body(tools=[TOOL], tool_choice="required", response_format={"type": "text"}),
        "tools",
    ),
    "a choice of no tools": (body(tool_choice="required"), body(tool_choice="auto"), "tool_choice"),
    "tools and a grammar": (
        body(tools=[TOOL], guided_regex="a"),
        body(tools=[TOOL], guided_regex="a", tool_choice="none"),
        "tools",
    ),
    "a user who calls": (
        body(messages=[{"role": "user", "content": "x", "tool_calls": [CALL]}]),
        body(messages=[*HELLO, {"role": "assistant", "content": None, "tool_calls": [CALL]}]),
        "messages[0].tool_calls",
    ),
    "a result of no call": (
        body(messages=[*HELLO, {"role": "tool", "content": "x"}]),
        body(messages=[*HELLO, {"role": "tool", "content": "x", "tool_call_id": "c1"}]),
        "messages[1].tool_call_id",
    ),
    "a user who thinks": (
        body(messages=[{"role": "user", "content": "x", "reasoning_content": "y"}]),
        body(messages=[{"role": "assistant", "content": "x", "reasoning_content": "y"}, *HELLO]),
        "messages[0].reasoning_content",
    ),
    "JSON that is no schema": (
        body(response_format={"json": ""}),
        body(response_format={"type": "json_object"}),
        "response_format.",
    ),
    "a schema without its type": (
        body(response_format={"type": "json_object", "json_schema": SCHEMA}),
        body(response_format={"type": "json_schema", "json_schema": SCHEMA}),
        "response_format.json_schema",
    ),
    "a type without its schema": (
        body(response_format={"type": "json_schema"}),
        body(response_format={"type": "text"}),
        "response_format.json_schema",
    ),
    "a schema with a name of blanks": (
        body(response_format={"type": "json_schema", "json_schema": {**SCHEMA, "name": "a b"}}),
        body(response_format={"type": "json_schema", "json_schema": {**SCHEMA, "strict": True}}),
        "response_format.json_schema.name",
    ),
    "a schema that never ends": (
        body(guided_json={"enum": ["x" * 70_000]}),
        body(guided_json={"enum": ["x" * 60_000]}),
        "guided_json",
    ),
    "a schema as text that is none": (body(guided_json=""), body(guided_json="{}"), "guided_json"),
    "a schema as text that nests": (body(guided_json=nested(100_000)[:60_000]), body(guided_json="{}"), "guided_json"),
    "a schema as a list": (body(guided_json="[]"), body(guided_json='{"a":[]}'), "guided_json"),
    "an endless expression": (body(guided_regex="a" * 5000), body(guided_regex="a" * 4096), "guided_regex"),
    "no choice": (body(guided_choice=[]), body(guided_choice=["a"]), "guided_choice"),
    "two grammars": (body(guided_choice=["a"], guided_regex="a"), body(guided_choice=["a"]), "guided_choice"),
    "two kinds of grammar": (
        body(response_format={"type": "json_object"}, guided_regex="a"),
        body(response_format={"type": "text"}, guided_regex="a"),
        "guided_regex",
    ),
    "likeliest tokens without their numbers": (
        body(top_logprobs=2),
        body(top_logprobs=2, logprobs=True),
        "top_logprobs",
    ),
    "21 likeliest tokens": (body(logprobs=True, top_logprobs=21), body(logprobs=True, top_logprobs=20), "top_logprobs"),
    "log-probabilities as a number": (body(logprobs=1), body(logprobs=True), "logprobs"),
    "a penalty": (body(presence_penalty=2.1), body(presence_penalty=2), "presence_penalty"),
    "a penalty below": (body(frequency_penalty=-2.1), body(frequency_penalty=-2), "frequency_penalty"),
    "a repetition of nothing": (body(repetition_penalty=0), body(repetition_penalty=0.1), "repetition_penalty"),
    "min_p 2": (body(min_p=2), body(min_p=0.99), "min_p"),
    "a bias": (body(logit_bias={"5": 101}), body(logit_bias={"5": 100}), "logit_bias"),
    "a bias of no token": (body(logit_bias={"whale": 1}), body(logit_bias={"0": 1}), "logit_bias"),
    "a bias below": (body(logit_bias={"-1": 1}), body(logit_bias={"1": -1}), "logit_bias"),
    "a million biases": (
        body(logit_bias={str(i): 1 for i in range(200_000)}),
        body(logit_bias={str(i): 1 for i in range(1024)}),
        None,
    ),
    "a key twice": (body()[:-1] + b',"n":1,"n":2}', body(n=2), None),
    "a key twice, deep": (
        b'{"model":"m","messages":[{"role":"user","content":"a","content":"b"}]}',
        with_text("b"),
        None,
    ),
    "usage of no stream": (
        body(stream_options={"include_usage": True}),
        body(stream_options={"include_usage": True}, stream=True),
        "stream_options",
    ),
    "to think and not to": (
        body(reasoning_effort="none", chat_template_kwargs={"thinking": True}),
        body(reasoning_effort="low", chat_template_kwargs={"thinking": True}),
        "reasoning_effort",
    ),
    "to think and not to, in a template's two names": (
        body(chat_template_kwargs={"thinking": True, "enable_thinking": False}),
        body(chat_template_kwargs={"thinking": False, "enable_thinking": False}),
        "chat_template_kwargs.enable_thinking",
    ),
    "not to think, between two that do": (
        body(chat_template_kwargs={"thinking": True}, thinking={"type": "disabled"}, reasoning_effort="high"),
        body(chat_template_kwargs={"thinking": True}, thinking={"type": "enabled"}, reasoning_effort="high"),
        "thinking",
    ),
    "an effort of its own": (body(reasoning_effort="much"), body(reasoning_effort="high"), "reasoning_effort"),
    "a priority over others": (body(priority=-1), body(priority=5), "priority"),
    "a priority of a million": (body(priority=10**6), body(priority=1000), "priority"),
    "a verbosity": (body(verbosity="low"), body(verbosity="medium"), "verbosity"),
    "a turn to go on with": (
        body(messages=[*HELLO, {"role": "assistant", "content": "a", "prefix": True}]),
        body(messages=[*HELLO, {"role": "assistant", "content": "a", "prefix": False}]),
        "messages[1].prefix",
    ),
    "a budget of thinking": (
        body(thinking={"type": "enabled", "budget_tokens": 100}),
        body(thinking={"type": "enabled"}),
        "thinking.budget_tokens",
    ),
    "a function": (body(functions=[{"name": "f"}]), body(functions=[]), "functions"),
}


@pytest.mark.parametrize("name", POISONS)
def test_a_poison_is_refused_and_its_twin_is_taken(name: str) -> None:
    poison, twin, param = POISONS[name]
    parse_request(ChatRequest, twin)
    with pytest.raises(ApiError) as caught:
        parse_request(ChatRequest, poison)
    error = caught.value.body()["error"]
    assert (caught.value.status, error["type"]) == (400, "invalid_request_error")
    assert param is None or error["param"].startswith(param), error
    assert len(error["message"]) < 500


def test_a_choice_that_forces_calls_becomes_a_grammar_of_them() -> None:
    bare = {"type": "function", "function": {"name": "now"}}
    add = {"name": "add", "parameters": {"type": "object"}}
    now = {"name": "now", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}}
    named = {"type": "function", "function": {"name": "now"}}
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"title": "a"}}}
    anything = {"type": "json_object"}
    cases: list[tuple[dict[str, Any], Any]] = [
        ({}, None),
        ({"tool_choice": "auto"}, None),
        ({"tool_choice": "none"}, None),
        ({"tool_choice": "required"}, {"tools": [add, now], "many": True}),
        ({"tool_choice": "required", "parallel_tool_calls": True}, {"tools": [add, now], "many": True}),
        ({"tool_choice": "required", "parallel_tool_calls": False}, {"tools": [add, now], "many": False}),
        ({"tool_choice": named}, {"tools": [now], "many": False}),
        ({"tool_choice": named, "parallel_tool_calls": True}, {"tools": [now], "many": False}),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": form}, {"tools": [add, now], "many": True, "answer": {"title": "a"}}),
        ({"response_format": anything}, {"tools": [add, now], "many": True, "answer": {"type": "object"}}),
        (
            {"response_format": form, "parallel_tool_calls": False},
            {"tools": [add, now], "many": False, "answer": {"title": "a"}},
        ),
        ({"response_format": form, "tool_choice": named}, {"tools": [now], "many": False}),
        ({"response_format": form, "tool_choice": "required"}, {"tools": [add, now], "many": True}),
    ]
    for given, expected in cases:
        found = parse_request(ChatRequest, body(tools=[TOOL, bare], **given))[0].grammar()
        assert (found and (found.kind, json.loads(found.source))) == (expected and ("calls", expected)), given
    hidden = parse_request(ChatRequest, body(tools=[TOOL], tool_choice="none", response_format=form))[0]
    assert hidden.grammar() == Grammar("json_schema", '{"title":"a"}')
    assert hidden.constraining_field == "response_format"
    assert (
        parse_request(ChatRequest, body(tools=[TOOL], response_format=form))[0].constraining_field is None
    )  # the one or the other
    assert (
        parse_request(ChatRequest, body(tools=[TOOL], response_format=form, tool_choice="required"))[
            0
        ].constraining_field
        == "tools"
    )
    for choice in ("auto", "required"):
        with pytest.raises(ApiError, match="combined with `guided_regex`"):
            parse_request(ChatRequest, body(tools=[TOOL], guided_regex="a+", tool_choice=choice))
    long = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"title": "a" * 65_536}}}
    with pytest.raises(ApiError) as caught:
        parse_request(ChatRequest, body(tools=[TOOL], response_format=long))
    assert caught.value.param == "response_format.json_schema.schema"


@pytest.mark.parametrize(
    ("given", "mode"),
    [
        ({}, None),
        ({"reasoning_effort": "none"}, "off"),
        ({"reasoning_effort": "minimal"}, "on"),
        ({"reasoning_effort": "high"}, "on"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "off"),
        ({"thinking": {"type": "enabled"}}, "on"),
        ({"thinking": {"type": "disabled"}}, "off"),
        ({"thinking": {"type": "disabled"}, "reasoning_effort": "none"}, "off"),
        ({"thinking": None, "reasoning_effort": "max"}, "on"),
    ],
)
def test_a_request_says_whether_to_think(given: dict[str, Any], mode: str | None) -> None:
    assert parse_request(ChatRequest, body(**given))[0].thinking == mode


def test_what_openais_client_adds_to_an_answer_may_come_back() -> None:
    """Its streams give calls an index, and its `parse` puts what it read beside what it got."""
    call = {**CALL, "index": 0, "function": {**CALL["function"], "parsed_arguments": {"a": [1]}}}
    said = {"role": "assistant", "content": None, "tool_calls": [call], "parsed": None, "refusal": None}
    other = {"role": "assistant", "content": '{"n": 1}', "parsed": {"n": 1}}
    found, _ = parse_request(ChatRequest, body(messages=[*HELLO, said, *HELLO, other, *HELLO]))
    plain = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    bare = {"role": "assistant", "content": '{"n": 1}'}
    expected, _ = parse_request(ChatRequest, body(messages=[*HELLO, plain, *HELLO, bare, *HELLO]))
    assert [one.to_message() for one in found.messages] == [one.to_message() for one in expected.messages]
    with pytest.raises(ApiError):
        parse_request(ChatRequest, body(messages=[*HELLO, {**said, "tool_calls": [{**call, "index": -1}]}]))


def test_more_answers_than_the_limit_are_refused_however_they_are_spread() -> None:
    def text(**fields: Any) -> bytes:
        return json.dumps({"model": "m", **fields}).encode()

    assert parse_request(TextRequest, text(prompt=["a"] * 2, n=64))[0].prompts == ["a", "a"]
    assert parse_request(TextRequest, text(prompt=[5, 6]))[0].prompts == [[5, 6]]
    for fields, param in (
        ({"prompt": ["a"] * 2, "n": 65}, "n"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
    ):
        with pytest.raises(ApiError) as caught:
            parse_request(TextRequest, text(**fields))
        assert caught.value.body()["error"]["param"] == param


def test_an_answer_of_ours_can_stand_in_the_next_request() -> None:
    ours = {"role": "assistant", "content": None, "refusal": None, "reasoning_content": "hm", "tool_calls": [CALL]}
    result = {
        "role": "tool",
        "tool_call_id": "c1",
        "content": [{"type": "text", "text": "4"}, {"type": "text", "text": "6"}],
    }
    request, _ = parse_request(ChatRequest, body(messages=[*HELLO, ours, result], tools=[TOOL]))
    assert [turn.to_message() for turn in request.messages[1:]] == [
        Message("assistant", "", "hm", (ToolCall("c1", "add", "{}"),)),
        Message("tool", [TextPart(text="4"), TextPart(text="6")], tool_call_id="c1"),
    ]
    assert request.offered_tools() == [Tool("add", "", {"type": "object"})]
    assert parse_request(ChatRequest, body(tools=[TOOL], tool_choice="none"))[0].offered_tools() == []


@pytest.mark.parametrize(
    ("poison", "twin"),
    [
        ([], [1]),
        ([-1], [0]),
        (["a", 1], ["a", "b"]),
        (7, [7]),
        ("a\0", "a"),
        ([True], [1]),
        (None, ""),
        ([[]], [[1]]),
        ([["a"]], ["a"]),
        ([[1], "a"], [[1], [2]]),
        (["a"] * 129, ["a"] * 128),
        (["a"] * 10**6, [7] * 10**5),
    ],
)
def test_prompts(poison: Any, twin: Any) -> None:
    parse_request(TextRequest, json.dumps({"model": "m", "prompt": twin}).encode())
    with pytest.raises(ApiError) as caught:
        parse_request(TextRequest, json.dumps({"model": "m", "prompt": poison}).encode())
    error = caught.value.body()["error"]
    assert (error["param"] or "").startswith("prompt") or "262,144 values" in error["message"]


def test_the_schema_of_a_request_says_what_it_takes() -> None:
    """A stop string or a list of them, and an object of biases, as clients send them."""
    fields = ChatRequest.model_json_schema()["properties"]
    assert [one["type"] for one in fields["stop"]["anyOf"]] == ["string", "array", "null"]
    assert [one["type"] for one in fields["logit_bias"]["anyOf"]] == ["object", "null"]
