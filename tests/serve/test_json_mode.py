"""Random JSON schemas: a reply that ends matches its schema, by jsonschema, or is refused by the name of a keyword in it; so may the schema be.

The two thousand are scripts/json_mode.py's; here is a slice of them.
"""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import asked
import drawn
import pytest
from served import Server

SCHEMAS, SEED = 40, 3
MOST, MOST_ENDLESS = 256, 48
"""Tokens of an answer; where a schema sets no end, the model of random weights mostly finds none."""


def test_replies_match_random_schemas_or_these_are_refused_by_name(server: Server) -> None:
    schemas, engine = drawn.schemas(SCHEMAS, SEED), server.engine()
    with server.client as http, ThreadPoolExecutor(4) as pool:
        waiting = [
            pool.submit(asked.ask, http, "tiny", schema, number, MOST_ENDLESS if drawn.endless(schema) else MOST)
            for number, (_, schema) in enumerate(schemas)
        ]
        outcomes = [one.result() for one in waiting]
    counts = Counter[str]()
    for (_, schema), outcome in zip(schemas, outcomes, strict=True):
        assert outcome.kind != "wrong", f"{outcome.said} under {schema}"
        assert outcome.kind != "length" or drawn.endless(schema), f"no end of {outcome.said!r} under {schema}"
        counts[outcome.kind] += 1
    assert counts["stop"] >= SCHEMAS // 4
    assert counts["refused"] + counts["unmatched"] <= SCHEMAS // 5
    assert server.engine() == engine


def test_an_answer_that_does_not_match_is_an_error_that_names_the_keyword(server: Server) -> None:
    """Whole, streamed, and as the arguments of a call."""
    schema = {
        "type": "array",
        "items": {"type": "integer"},
        "minItems": 1,
        "maxItems": 2,
        "contains": {"const": 10**12 + 7},
    }
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    body = {"model": "tiny", "messages": [{"role": "user", "content": "go"}], "temperature": 1, "max_tokens": 400,
            "chat_template_kwargs": {"thinking": False}}  # fmt: skip
    named = {
        "name": "say",
        "parameters": {"type": "object", "properties": {"x": schema}, "required": ["x"], "additionalProperties": False},
    }
    tools = {
        "tools": [{"type": "function", "function": named}],
        "tool_choice": "required",
        "parallel_tool_calls": False,
    }
    with server.client as http:
        reply = http.post("/v1/chat/completions", json={**body, "response_format": form, "seed": 1})
        assert (reply.status_code, reply.json()["error"]["code"]) == (422, "schema_mismatch")
        assert reply.json()["error"]["param"] == "response_format"
        assert "'contains' at # does not hold for" in reply.json()["error"]["message"]
        streamed = http.post("/v1/chat/completions", json={**body, "response_format": form, "seed": 1, "stream": True})
        assert "'contains' at # does not hold for" in streamed.text
        assert "[DONE]" not in streamed.text
        called = http.post("/v1/chat/completions", json={**body, **tools, "seed": 1})
        assert called.status_code == 422, called.text
        assert "'contains' at #/properties/x" in called.json()["error"]["message"]
        assert "the parameters of 'say'" in called.json()["error"]["message"]


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "integer"}, "1.5"),
        ({"multipleOf": 0.1}, "0.35"),
        ({"minimum": 0.1}, "0.09999999999999999999"),
        ({"const": 0.1}, "0.10000000000000000001"),
        ({"type": "object", "required": ["a"]}, "{}"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"type": "null"}}}, "0"),
        ({}, "NaN"),
        ({}, '{"a":1'),
    ],
)
def test_the_judge_sees_what_does_not_match(schema: dict[str, Any], text: str) -> None:
    assert drawn.wrong_with(text, schema)


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "integer"}, "15"),
        ({"multipleOf": 0.1}, "0.3"),
        ({"multipleOf": 0.01}, "123456789012345678901.07"),
        ({"minimum": 0.1}, "0.1"),
        ({"const": 0.1}, "0.10"),
        ({"format": "date"}, '"no date"'),
    ],
)
def test_the_judge_takes_what_matches(schema: dict[str, Any], text: str) -> None:
    assert not drawn.wrong_with(text, schema)


def test_a_refusal_that_names_nothing_of_the_schema_is_wrong() -> None:
    assert asked.refusal("it uses 'not' at #", {"not": {}}) == asked.Outcome("refused", "not")
    assert asked.refusal("it uses 'not' at #", {"type": "null", "properties": {"not": {}}}).kind == "wrong"
    assert asked.refusal("it cannot be used", {"not": {}}).kind == "wrong"
