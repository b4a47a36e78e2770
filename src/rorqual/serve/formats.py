"""Structured output: OpenAI's `response_format` and vLLM's `guided_*`, converted to one grammar.

This module checks sizes, and that a request gives only one of them. The engine checks whether a schema or a regular
expression can be compiled.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import pydantic_core
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from rorqual.core.sampling import Grammar
from rorqual.serve.errors import refuse

MAX_SCHEMA, MAX_REGEX, MAX_CHOICES, MAX_TEXT = 65_536, 4096, 1024, 65_536


def _writable(text: str) -> str:
    if "\0" in text:
        raise ValueError("contains a NUL character")
    return text


Text = Annotated[str, AfterValidator(_writable)]


class Schema(BaseModel):
    """Base of all request schemas: strict types, and unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class JsonSchema(Schema):
    """A named JSON schema. `strict` and `description` have no effect: the output always follows the schema."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    description: Annotated[Text, Field(max_length=MAX_TEXT)] | None = None
    strict: bool | None = None


class ResponseFormat(Schema):
    """OpenAI's `response_format`. `text`: any text; `json_object`: a JSON object; `json_schema`: JSON that follows the schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    def grammar(self) -> Grammar | None:
        """Return the grammar, or None for text. Raises ApiError if type and `json_schema` do not match."""
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise refuse(
                f"`response_format.json_schema` {'is missing' if self.json_schema is None else 'does not match this type'}."
                " Give both type json_schema and json_schema, or neither.",
                "response_format.json_schema",
            )
        if self.json_schema is not None:
            return Grammar("json_schema", source_of(self.json_schema.schema_, "response_format.json_schema.schema"))
        return Grammar("json") if self.type == "json_object" else None

    @property
    def schema_(self) -> dict[str, Any]:
        """The schema of the output, for `json_schema` and `json_object`."""
        return {"type": "object"} if self.json_schema is None else self.json_schema.schema_


class Guided(Schema):
    """Structured output fields: OpenAI's `response_format`, and vLLM's `guided_*`.

    `guided_json`: a JSON schema as object or text. `guided_regex`: matches the whole reply. `guided_choice`: allowed replies.
    """

    response_format: ResponseFormat | None = None
    guided_json: dict[str, Any] | Annotated[Text, Field(max_length=MAX_SCHEMA)] | None = None
    guided_regex: Annotated[Text, Field(min_length=1, max_length=MAX_REGEX)] | None = None
    guided_choice: (
        Annotated[
            list[Annotated[Text, Field(min_length=1, max_length=MAX_REGEX)]],
            Field(min_length=1, max_length=MAX_CHOICES, fail_fast=True),
        ]
        | None
    ) = None

    @property
    def bound(self) -> str | None:
        """The name of the parameter that constrains the reply, if any."""
        asked = self.response_format is not None and self.response_format.type != "text"
        given = {"response_format": asked, "guided_json": self.guided_json is not None}
        given |= {"guided_regex": self.guided_regex is not None, "guided_choice": self.guided_choice is not None}
        return next((name for name, there in given.items() if there), None)

    def grammar(self) -> Grammar | None:
        """Return the grammar that the reply must match, or None. Raises ApiError if the request gives more than one."""
        found: dict[str, Grammar] = {}
        if self.response_format is not None and (asked := self.response_format.grammar()) is not None:
            found["response_format"] = asked
        if self.guided_json is not None:
            found["guided_json"] = Grammar("json_schema", source_of(_object(self.guided_json), "guided_json"))
        if self.guided_regex is not None:
            found["guided_regex"] = Grammar("regex", self.guided_regex)
        if self.guided_choice is not None:
            found["guided_choice"] = Grammar("choice", source_of(self.guided_choice, "guided_choice"))
        if len(found) > 1:
            names = list(found)
            raise refuse(f"`{names[0]}` and `{names[1]}` exclude each other. Give one of them.", names[1])
        return next(iter(found.values()), None)


def _object(schema: dict[str, Any] | str) -> dict[str, Any]:
    if not isinstance(schema, str):
        return schema
    try:
        found = pydantic_core.from_json(schema, allow_inf_nan=False)  # this parser limits depth
    except ValueError as error:
        said = str(error)[:200]
        raise refuse(f"`guided_json` is not valid JSON: {said}. Give a JSON schema.", "guided_json") from None
    if not isinstance(found, dict):
        raise refuse("`guided_json` is not a JSON object. Give a JSON schema.", "guided_json")
    return found


def source_of(value: Any, param: str) -> str:
    """Return a grammar's source as JSON text. Raises ApiError naming `param` if it is too long."""
    source = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    if len(source) > MAX_SCHEMA:
        raise refuse(f"`{param}` is longer than {MAX_SCHEMA} characters as JSON. Shorten it.", param)
    return source
