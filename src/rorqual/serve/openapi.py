"""The OpenAPI 3.1 document of the API.

The document describes requests by their schemas. The document gives only the field names of responses, because responses have
the format of OpenAI's API.
"""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema

from rorqual.serve.schemas import ChatRequest, TextRequest
from rorqual.serve.service import Service
from rorqual.serve.unsupported_fields import IGNORED

REF = "#/components/schemas/{model}"
JSON = "application/json"
ROUTES = (
    (ChatRequest, "/v1/chat/completions", "Continue a conversation."),
    (TextRequest, "/v1/completions", "Continue one or more prompts."),
)
"""The schema of the requests, the path and the summary of each route that generates replies."""


def openapi_document(service: Service) -> dict[str, Any]:
    """Return the OpenAPI document of a server."""
    _, shared = models_json_schema([(schema, "validation") for schema in service.requests], ref_template=REF)
    schemas = shared["$defs"]
    for schema in service.requests:
        _add_ignored_fields(schemas[schema.__name__], service.name)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Rorqual", "version": "1", "description": "A model with an OpenAI-compatible API."},
        "security": [{"key": []}],
        "paths": _paths(service),
        "components": {"schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }


def _add_ignored_fields(schema: dict[str, Any], model: str) -> None:
    """Add the ignored fields and the model's name, which pydantic's schema lacks, to a request schema."""
    schema["properties"] |= {name: {"description": "Accepted and ignored."} for name in sorted(IGNORED)}
    schema["properties"]["model"] = {"type": "string", "const": model}


def _paths(service: Service) -> dict[str, Any]:
    completion = _object_schema("id", "object", "created", "model", "choices", "usage")
    card = _object_schema("id", "object", "created", "owned_by", *service.model_details())
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "const": service.name}}
    text = {"type": "string"}
    return {
        **{
            path: {"post": _generation_route(schema.__name__, completion, summary)}
            for schema in service.requests
            for kind, path, summary in ROUTES
            if issubclass(schema, kind)
        },
        "/v1/models": {"get": _route_description(_object_schema("object", "data"), "List the served model.")},
        "/v1/models/{name}": {"get": _route_description(card, "Return the served model.") | {"parameters": [name]}},
        "/livez": {
            "get": _route_description(text, "Return an empty body. This route needs no key.") | {"security": []}
        },
        "/health": {
            "get": _route_description(
                _object_schema("status"), "Return 200 if the engine is ready, else 503.", also=("503",)
            )
        },
        "/metrics": {"get": _route_description(text, "Return metrics for Prometheus.")},
        "/openapi.json": {
            "get": _route_description(_object_schema("openapi", "paths", "components"), "Return this document.")
        },
    }


def _object_schema(*names: str) -> dict[str, Any]:
    """Return the schema of a JSON object with the fields `names`."""
    return {"type": "object", "required": list(names)}


def _response_content(schema: dict[str, Any], description: str) -> dict[str, Any]:
    kind = "text/plain" if schema["type"] == "string" else JSON
    return {"description": description, "content": {kind: {"schema": schema}}}


def _route_description(answer: dict[str, Any], summary: str, also: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the description of a route. Status codes in `also` have the same response schema as status 200; all other status
    codes are errors."""
    responses = {code: _response_content(answer, summary) for code in ("200", *also)}
    error = _response_content(
        _object_schema("error", "request_id"), "An error in OpenAI's format; its `param` names the parameter."
    )
    return {"summary": summary, "responses": responses | {"default": error}}


def _generation_route(request: str, answer: dict[str, Any], summary: str) -> dict[str, Any]:
    route = _route_description(answer, summary)
    route["responses"]["200"]["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    body = {"required": True, "content": {JSON: {"schema": {"$ref": REF.format(model=request)}}}}
    return route | {"requestBody": body}
