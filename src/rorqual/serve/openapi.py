"""The API described for programs: an OpenAPI 3.1 document, made from the very schemas that requests are read with."""

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
    "400": "The request cannot be meant: `param` names the parameter.",
    "401": "No key, or none that is known.",
    "404": "No such model.",
    "405": "No such method here.",
    "408": "The body did not arrive in time.",
    "413": "The body is too long.",
    "415": "The body is no plain JSON.",
    "429": "Too many requests are under way.",
    "503": "The engine is loading or died, or the server is stopping.",
}


def document(model: str) -> dict[str, Any]:
    """What the server that serves `model` can be asked, and what it answers."""
    pairs: list[Any] = [(schema, "validation") for schema in REQUESTS]
    pairs += [(schema, "serialization") for schema in ANSWERS]
    _, shared = models_json_schema(pairs, ref_template=REF)
    schemas = shared["$defs"]
    for schema in REQUESTS:
        _open(schemas[schema.__name__], model)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Rorqual", "version": "1", "description": "A model behind OpenAI's API."},
        "security": [{"key": []}],
        "paths": _paths(model),
        "components": {"schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }


def _open(schema: dict[str, Any], model: str) -> None:
    """What pydantic does not know: names that are accepted and change nothing, and the one model there is."""
    schema["properties"] |= {name: {"description": "Accepted; changes nothing."} for name in sorted(IGNORED)}
    schema["properties"]["model"] = {"type": "string", "const": model}


def _paths(model: str) -> dict[str, Any]:
    parameter = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "const": model}}
    return {
        "/v1/chat/completions": {"post": _asked("ChatRequest", "ChatCompletion", "A conversation, continued.")},
        "/v1/completions": {"post": _asked("TextRequest", "TextCompletion", "Texts, continued.")},
        "/v1/models": {"get": _told("Cards", "The one model.")},
        "/v1/models/{name}": {"get": _told("Card", "The one model, by its name.") | {"parameters": [parameter]}},
        "/livez": {"get": {**_plain("text/plain", "Nothing, for whoever asks: the process runs."), "security": []}},
        "/health": {"get": _told("Health", "200 where the engine is ready.", also=("503",))},
        "/metrics": {"get": _plain("text/plain", "For Prometheus.")},
        "/openapi.json": {"get": _plain(JSON, "This document.")},
    }


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": REF.format(model=name)}


def _body(kind: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"description": description, "content": {kind: {"schema": schema}}}


def _errors(*codes: str) -> dict[str, Any]:
    return {code: _body(JSON, _ref("Error"), ERRORS[code]) for code in codes}


def _asked(request: str, answer: str, summary: str) -> dict[str, Any]:
    done = _body(JSON, _ref(answer), "The answer; a stream of events where `stream` asks for it.")
    done["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    body = {"required": True, "content": {JSON: {"schema": _ref(request)}}}
    return {"summary": summary, "requestBody": body, "responses": {"200": done, **_errors(*ERRORS)}}


def _told(answer: str, summary: str, also: tuple[str, ...] = ()) -> dict[str, Any]:
    responses = {code: _body(JSON, _ref(answer), summary) for code in ("200", *also)}
    return {"summary": summary, "responses": responses | _errors("401", "404", "405")}


def _plain(kind: str, summary: str) -> dict[str, Any]:
    schema = {"type": "object" if kind == JSON else "string"}
    return {"summary": summary, "responses": {"200": _body(kind, schema, summary), **_errors("401", "405")}}
