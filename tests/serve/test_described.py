"""The API does what its description says: every route, with what fits the schemas and what does not, by schemathesis."""

from __future__ import annotations

from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import schemathesis
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from served import Server

CHECKS = [
    schemathesis.checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
HELLO = [{"role": "user", "content": "hello"}]
ALWAYS = ("model", "messages", "prompt")
SHORT = {"max_tokens": 3, "max_completion_tokens": 3, "n": 1, "stream": False, "prompt": "a"}
"""What would only take time. A stream's answer is no JSON; other tests read those."""


@pytest.fixture(scope="module")
def described(server: Server) -> Any:
    return schemathesis.openapi.from_url(
        f"{server.url}/openapi.json", headers={"authorization": f"Bearer {server.key}"}
    )


OPEN = (("GET", "/livez"),)
"""Without a key."""
ROUTES = (
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{name}"),
    ("GET", "/health"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
)


def test_the_description_has_every_route(server: Server) -> None:
    with server.client as client:
        paths = client.get("/openapi.json").json()["paths"]
    assert {(method.upper(), path) for path, methods in paths.items() for method in methods} == {*ROUTES, *OPEN}


@pytest.mark.parametrize(
    ("method", "path", "mode"),
    [
        *((method, path, "positive") for method, path in ROUTES),
        *((method, path, "negative") for method, path in ROUTES if method == "POST"),
    ],
)
def test_a_route_answers_as_it_is_described(server: Server, described: Any, method: str, path: str, mode: str) -> None:
    generation = schemathesis.GenerationMode(mode)
    operation = described[path][method]
    statuses: set[int] = set()

    @hypothesis.given(case=operation.as_strategy(generation_mode=generation), kept=st.integers(0, 4))
    @hypothesis.settings(
        max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=list(hypothesis.HealthCheck)
    )  # fmt: skip
    def holds(case: Any, kept: int) -> None:
        if isinstance(case.body, dict):
            case.body = plainer(case.body, kept)
        answer = case.call(headers={"authorization": f"Bearer {server.key}"}, timeout=60)
        statuses.add(answer.status_code)
        case.validate_response(answer, checks=CHECKS)

    holds()
    if generation is schemathesis.GenerationMode.POSITIVE:
        assert 200 in statuses
    else:
        assert statuses & {400, 415}


def plainer(body: dict[str, Any], kept: int) -> dict[str, Any]:
    """Few tokens and one answer, where more were asked for. With `kept` below 4 so many optional parameters, and a conversation that any
    chat can write: of all together, some nearly always contradict each other."""
    body = body | {name: value for name, value in SHORT.items() if name in body and fits(name, body[name])}
    if kept == 4:  # where no length is named, the answer would fill the context
        return body if {"max_tokens", "max_completion_tokens"} & set(body) else body | {"max_tokens": 3}
    rest = [name for name in body if name not in ALWAYS]
    chosen = {name: body[name] for name in (*ALWAYS, *rest[:kept]) if name in body}
    messages = chosen.get("messages")
    proper = isinstance(messages, list) and messages and all(isinstance(turn, dict) for turn in messages)
    return {"max_tokens": 3} | chosen | ({"messages": HELLO} if proper else {})


def fits(name: str, value: Any) -> bool:
    """Whether it is of the right kind, so that a wrong one stays wrong."""
    return type(value) is type(SHORT[name]) or (name == "prompt" and isinstance(value, list))


def test_every_error_is_as_described(server: Server) -> None:
    with server.client as client:
        for method, path, status in (
            ("POST", "/v1/models", 405),
            ("GET", "/v1/models/x", 404),
            ("GET", "/nothing", 404),
        ):
            answer = client.request(method, path)
            assert answer.status_code == status
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
