"""Poisons: each is refused with 400 and names what is wrong; its nearest valid twin is taken."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rorqual.serve.errors import ApiError
from rorqual.serve.schemas import ChatRequest, TextRequest, read

HELLO = [{"role": "user", "content": "hello"}]
BASE: dict[str, Any] = {"model": "m", "messages": HELLO}


def body(**fields: Any) -> bytes:
    return json.dumps(BASE | fields).encode()


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def with_text(escaped: str) -> bytes:
    return b'{"model":"m","messages":[{"role":"user","content":"' + escaped.encode() + b'"}]}'


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
    "NUL": (with_text("a\\u0000"), with_text("a\\u0001"), "messages.0.content"),
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
    "a million stops": (body(stop=["a"] * 10**6), body(stop=["a"] * 16), "stop"),
    "an empty stop": (body(stop=[""]), body(stop=[" "]), "stop"),
    "no messages": (body(messages=[]), body(), "messages"),
    "messages as text": (body(messages="hi"), body(), "messages"),
    "a role of its own": (
        body(messages=[{"role": "boss", "content": "x"}]),
        body(messages=[{"role": "developer", "content": "x"}, *HELLO]),
        "messages.0.role",
    ),
    "a picture": (
        body(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/"}}]}]),
        body(messages=[{"role": "user", "content": [{"type": "text", "text": "x"}]}]),
        "messages.0.content.0.type",
    ),
    "an unknown parameter": (body(temprature=1), body(temperature=1), "temprature"),
    "a tool": (body(tools=[{"type": "function"}]), body(tools=[]), "tools"),
    "JSON mode": (
        body(response_format={"type": "json_object"}),
        body(response_format={"type": "text"}),
        "response_format",
    ),
    "log-probabilities": (body(logprobs=True), body(logprobs=False), "logprobs"),
    "a penalty": (body(presence_penalty=0.5), body(presence_penalty=0), "presence_penalty"),
    "a bias": (body(logit_bias={"5": 1}), body(logit_bias={}), "logit_bias"),
    "a schema that is no schema": (body(response_format={"json": ""}), body(response_format=None), "response_format"),
}


@pytest.mark.parametrize("name", POISONS)
def test_a_poison_is_refused_and_its_twin_is_taken(name: str) -> None:
    poison, twin, param = POISONS[name]
    read(ChatRequest, twin)
    with pytest.raises(ApiError) as caught:
        read(ChatRequest, poison)
    error = caught.value.body()["error"]
    assert caught.value.status == 400
    assert error["type"] == "invalid_request_error"
    assert param is None or error["param"].startswith(param), error
    assert len(error["message"]) < 500


def test_what_changes_nothing_is_listed() -> None:
    request, ignored = read(ChatRequest, body(user="me", store=True, n=None))
    assert (ignored, request.n) == (["store", "user"], None)


def test_the_nearest_parameter_is_named() -> None:
    with pytest.raises(ApiError, match="'temperature'"):
        read(ChatRequest, body(temprature=1))


@pytest.mark.parametrize(
    ("poison", "twin"),
    [([], [1]), ([-1], [0]), (["a", "b"], "a b"), (7, [7]), ("a\0", "a"), ([True], [1]), (None, "")],
)
def test_prompts(poison: Any, twin: Any) -> None:
    read(TextRequest, json.dumps({"model": "m", "prompt": twin}).encode())
    with pytest.raises(ApiError) as caught:
        read(TextRequest, json.dumps({"model": "m", "prompt": poison}).encode())
    assert caught.value.body()["error"]["param"].startswith("prompt")
