"""Structured output: convert OpenAI's `response_format` and vLLM's `guided_*` fields to a grammar.

This module checks the sizes of grammars, and whether a request sets more than one structured-output field. The engine checks
whether a schema or a regular expression compiles.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import pydantic_core
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from rorqual.core.sampling import Grammar
from rorqual.serve.errors import bad_request

MAX_SCHEMA, MAX_REGEX, MAX_CHOICES, MAX_TEXT = 65_536, 4096, 1024, 65_536


def _reject_nul(text: str) -> str:
    if "\0" in text:
        raise PydanticCustomError("nul", "It contains a NUL character. Remove the character")
    return text


Text = Annotated[str, AfterValidator(_reject_nul)]


class RequestSchema(BaseModel):
    """Base class of all request schemas. Types are strict, and unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class JsonSchema(RequestSchema):
    """A named JSON schema. `strict` and `description` have no effect: the output always follows the schema."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    description: Annotated[Text, Field(max_length=MAX_TEXT)] | None = None
    strict: bool | None = None


class ResponseFormat(RequestSchema):
    """OpenAI's `response_format`. `type`: `text` for any text, `json_object` for a JSON object, `json_schema` for a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    def grammar(self) -> Grammar | None:
        """Return the grammar of the reply, or None for plain text.

        Raises ApiError if `type` is `json_schema` but the field `json_schema` is missing, or if `json_schema` is set but
        `type` has another value.
        """
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise bad_request(
                f"`response_format.json_schema` {'is missing' if self.json_schema is None else 'does not match this type'}."
                " Set type to json_schema and give a json_schema, or do neither.",
                "response_format.json_schema",
            )
        if self.json_schema is not None:
            return Grammar(
                "json_schema", grammar_source(self.json_schema.schema_, "response_format.json_schema.schema")
            )
        return Grammar("json") if self.type == "json_object" else None

    @property
    def schema_(self) -> dict[str, Any]:
        """The JSON schema of the reply. For `json_object`, the schema allows any object."""
        return {"type": "object"} if self.json_schema is None else self.json_schema.schema_


class StructuredOutputFields(RequestSchema):
    """The structured output fields of a request: OpenAI's `response_format`, and vLLM's `guided_*`.

    `guided_json`: a JSON schema, as an object or a string. `guided_regex`: a regular expression that the whole reply must
    match. `guided_choice`: the allowed replies.
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
    def constraining_field(self) -> str | None:
        """The name of the field that constrains the reply, or None."""
        has_format = self.response_format is not None and self.response_format.type != "text"
        is_set = {"response_format": has_format, "guided_json": self.guided_json is not None}
        is_set |= {"guided_regex": self.guided_regex is not None, "guided_choice": self.guided_choice is not None}
        return next((name for name, set_ in is_set.items() if set_), None)

    @property
    def is_reply_unconstrained(self) -> bool:
        """Whether the request sets no structured-output field, so that the default grammar of the run applies."""
        return self.response_format is None and self.constraining_field is None

    def grammar(self) -> Grammar | None:
        """Return the grammar that the reply must match, or None. Raises ApiError if several fields constrain the reply."""
        grammars: dict[str, Grammar] = {}
        if self.response_format is not None and (grammar := self.response_format.grammar()) is not None:
            grammars["response_format"] = grammar
        if self.guided_json is not None:
            grammars["guided_json"] = Grammar(
                "json_schema", grammar_source(_parse_schema(self.guided_json), "guided_json")
            )
        if self.guided_regex is not None:
            grammars["guided_regex"] = Grammar("regex", self.guided_regex)
        if self.guided_choice is not None:
            grammars["guided_choice"] = Grammar("choice", grammar_source(self.guided_choice, "guided_choice"))
        if len(grammars) > 1:
            names = list(grammars)
            raise bad_request(
                f"`{names[0]}` and `{names[1]}` exclude each other. Give only one of the two fields.", names[1]
            )
        return next(iter(grammars.values()), None)


def _parse_schema(schema: dict[str, Any] | str) -> dict[str, Any]:
    if not isinstance(schema, str):
        return schema
    try:
        parsed = pydantic_core.from_json(schema, allow_inf_nan=False)  # pydantic's parser limits the nesting depth
    except ValueError as error:
        reason = str(error)[:200]
        raise bad_request(f"`guided_json` is not valid JSON: {reason}. Give a JSON schema.", "guided_json") from None
    if not isinstance(parsed, dict):
        raise bad_request("`guided_json` is not a JSON object. Give a JSON schema.", "guided_json")
    return parsed


def grammar_source(value: Any, param: str) -> str:
    """Serialize the source of a grammar as JSON. Raises an ApiError that names `param` if the JSON is longer than
    `MAX_SCHEMA` characters."""
    source = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    if len(source) > MAX_SCHEMA:
        raise bad_request(f"`{param}` is longer than {MAX_SCHEMA} characters as JSON. Shorten this value.", param)
    return source
