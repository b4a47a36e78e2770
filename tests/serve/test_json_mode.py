"""A reply that ends and does not match its schema is an error. Random schemas: tests/engine/test_grammar.py and scripts/json_mode.py."""

from __future__ import annotations

from served import Server


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
