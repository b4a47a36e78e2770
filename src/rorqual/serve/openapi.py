"""The OpenAPI 3.1 document of the API, generated from the request and response schemas."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema

from rorqual.serve.fields import IGNORED
from rorqual.serve.objects import Cards, ChatCompletion, Error, Health, TextCompletion
from rorqual.serve.schemas import ChatRequest, TextRequest

REF = "#/components/schemas/{model}"
REQUESTS = (ChatRequest, TextRequest)
ANSWERS = (ChatCompletion, TextCompletion, Cards, Health, Error)
JSON = "application/json"
ERRORS = {
    "400": "The request is invalid; `param` names the parameter.",
    "401": "The API key is missing or unknown.",
    "404": "The model or route does not exist.",
    "405": "The route does not support this method.",
    "408": "The body did not arrive in time.",
    "413": "The body is too long.",
    "415": "The body is not uncompressed JSON.",
    "429": "The queue is full.",
    "503": "The engine is loading or died, or the server is stopping.",
}


def document(model: str) -> dict[str, Any]:
    """Return the OpenAPI document of a server that serves the model named `model`."""
    pairs: list[Any] = [(schema, "validation") for schema in REQUESTS]
    pairs += [(schema, "serialization") for schema in ANSWERS]
    _, shared = models_json_schema(pairs, ref_template=REF)
    schemas = shared["$defs"]
    for schema in REQUESTS:
        _add_missing(schemas[schema.__name__], model)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Rorqual", "version": "1", "description": "A model with an OpenAI-compatible API."},
        "security": [{"key": []}],
        "paths": _paths(model),
        "components": {"schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }


def _add_missing(schema: dict[str, Any], model: str) -> None:
    """Add the ignored fields and the model's name to a request schema, because the pydantic schemas lack both."""
    schema["properties"] |= {name: {"description": "Accepted and ignored."} for name in sorted(IGNORED)}
    schema["properties"]["model"] = {"type": "string", "const": model}


def _paths(model: str) -> dict[str, Any]:
    parameter = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "const": model}}
    return {
        "/v1/chat/completions": {"post": _generating("ChatRequest", "ChatCompletion", "Continue a conversation.")},
        "/v1/completions": {"post": _generating("TextRequest", "TextCompletion", "Continue one or more prompts.")},
        "/v1/models": {"get": _reading("Cards", "List the served model.")},
        "/v1/models/{name}": {"get": _reading("Card", "Return the served model.") | {"parameters": [parameter]}},
        "/livez": {
            "get": {
                **_plain("text/plain", "An empty body while the server process runs. Needs no key."),
                "security": [],
            }
        },
        "/health": {
            "get": _reading("Health", "The engine's state. The status is 200 if the engine is ready.", also=("503",))
        },
        "/metrics": {"get": _plain("text/plain", "Metrics for Prometheus.")},
        "/openapi.json": {"get": _plain(JSON, "This document.")},
    }


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": REF.format(model=name)}


def _body(kind: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"description": description, "content": {kind: {"schema": schema}}}


def _errors(*codes: str) -> dict[str, Any]:
    return {code: _body(JSON, _ref("Error"), ERRORS[code]) for code in codes}


def _generating(request: str, answer: str, summary: str) -> dict[str, Any]:
    done = _body(JSON, _ref(answer), "The response; with `stream`, server-sent events.")
    done["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    body = {"required": True, "content": {JSON: {"schema": _ref(request)}}}
    return {"summary": summary, "requestBody": body, "responses": {"200": done, **_errors(*ERRORS)}}


def _reading(answer: str, summary: str, also: tuple[str, ...] = ()) -> dict[str, Any]:
    responses = {code: _body(JSON, _ref(answer), summary) for code in ("200", *also)}
    return {"summary": summary, "responses": responses | _errors("401", "404", "405")}


def _plain(kind: str, summary: str) -> dict[str, Any]:
    schema = {"type": "object" if kind == JSON else "string"}
    return {"summary": summary, "responses": {"200": _body(kind, schema, summary), **_errors("401", "405")}}
