"""Parse the sources of grammars, and reject a source that is too large, nested too deeply or not JSON."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from rorqual.core.errors import DataError

MAX_BYTES = 1 << 17
MAX_PATTERN = 1 << 13
MAX_DEPTH = 64
MAX_CHOICES = 1024


class _StrictModel(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class FunctionSchema(_StrictModel):
    """A function that a reply may call. `parameters` is the JSON schema of the function's arguments, which are always a JSON
    object."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    parameters: dict[str, Any]

    @field_validator("parameters")
    @classmethod
    def _set_object_type(cls, schema: dict[str, Any]) -> dict[str, Any]:
        kind = schema.get("type", "object")
        if kind != "object" and not (isinstance(kind, list) and "object" in kind):
            raise ValueError(f"the type of the arguments is {str(kind)[:100]!r}, but must be 'object'")
        return {**schema, "type": "object"}


class AllowedCalls(_StrictModel):
    """The tool calls that a reply may contain. If `many` is True, a reply may contain several tool calls. If `many` is False, a
    reply may contain only one tool call.

    `answer` is a JSON schema: instead of tool calls, a reply may be a JSON answer that matches this schema. If `answer` is
    None, every reply must contain a tool call.
    """

    tools: Annotated[list[FunctionSchema], Field(min_length=1)]
    many: bool
    answer: dict[str, Any] | None = None

    @property
    def parameter_schemas(self) -> dict[str, dict[str, Any]]:
        """The JSON schema of each function's arguments, by function name."""
        return {tool.name: tool.parameters for tool in self.tools}


def parse_schema(source: str) -> dict[str, Any]:
    """Parse a JSON schema. The schema `true` becomes {}. Raises DataError if `source` is not a JSON schema or is too large."""
    schema = _parse_json(source, "JSON schema", "{}")
    if schema is False:
        raise DataError("no reply can match the JSON schema 'false'", remedy="Allow at least one reply.")
    if schema is not True and not isinstance(schema, dict):
        raise DataError("the JSON schema is not an object", remedy='Give an object such as {"type": "object"}.')
    return {} if schema is True else schema


def choice_pattern(source: str) -> str:
    """Return a regular expression that matches exactly the strings in a JSON list."""
    choices = _parse_json(source, "list of choices", '["yes", "no"]')
    if not isinstance(choices, list) or not choices or not all(isinstance(c, str) and c for c in choices):
        raise DataError("the choices are not a list of non-empty strings", remedy='Give a list such as ["yes", "no"].')
    if len(choices) > MAX_CHOICES:
        raise DataError(
            f"the list has too many choices ({len(choices)} choices)", remedy=f"Give at most {MAX_CHOICES}."
        )
    return "(" + "|".join("".join(map(_escape_for_regex, choice)) for choice in choices) + ")"


def check_pattern(source: str) -> str:
    """Return the regular expression `source` unchanged. Raises DataError if the expression is empty or too long."""
    _check_source_text(source, "regular expression", "[0-9]+", MAX_PATTERN)
    return source


def parse_calls(source: str) -> AllowedCalls:
    """Parse the source of a grammar of kind `calls` (see `core.sampling.Grammar`). Raises DataError if `source` is invalid."""
    example = '{"tools": [{"name": "add", "parameters": {}}], "many": true}'
    try:
        return AllowedCalls.model_validate(_parse_json(source, "set of functions", example))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise DataError(
            f"the set of functions is invalid{' at ' * bool(place)}{place}: {first['msg']}",
            remedy=f"Give an object such as {example}.",
        ) from None


def nesting_depth(value: Any) -> int:
    """Return how deep arrays and objects are nested in a JSON value."""
    below = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(nesting_depth, below), default=0)


def _parse_json(source: str, kind: str, example: str) -> Any:
    _check_source_text(source, kind, example, MAX_BYTES)
    try:
        parsed = json.loads(source)
        json.dumps(parsed, ensure_ascii=False, allow_nan=False).encode()
        is_deep = nesting_depth(parsed) > MAX_DEPTH
    except ValueError as error:
        raise DataError(f"the {kind} is not JSON: {str(error)[:200]}", remedy=f"Give JSON such as {example}.") from None
    except RecursionError:
        is_deep = True
    if is_deep:
        raise DataError(
            f"the {kind} is nested deeper than {MAX_DEPTH} levels", remedy="Flatten the nesting, or use $defs."
        )
    return parsed


def _check_source_text(source: str, kind: str, example: str, most: int) -> None:
    if not source:
        raise DataError(f"the {kind} is empty", remedy=f"For example, give {example}.")
    try:
        size = len(source) if len(source) > most else len(source.encode())
    except UnicodeEncodeError:
        what = f"the {kind} contains a lone surrogate"
        raise DataError(what, remedy="Remove the surrogate: no text can match it.") from None
    if size > most:
        raise DataError(f"the {kind} is longer than {most} bytes", remedy="Shorten the text.")


def _escape_for_regex(character: str) -> str:
    return f"\\x{{{ord(character):x}}}" if character.isascii() and not character.isalnum() else character
