"""Parse the sources of grammars: check their size and nesting, and that they are JSON."""

from __future__ import annotations

import json
import re
from typing import Any

from rorqual.core.errors import DataError

MAX_BYTES = 1 << 17
MAX_PATTERN = 1 << 13
MAX_DEPTH = 64
MAX_CHOICES = 1024
_FUNCTION = re.compile(r"[a-zA-Z0-9_.-]{1,64}")


def parse_schema(source: str) -> dict[str, Any]:
    """Parse a JSON schema. `true` becomes {}. Raises DataError if the source is not a schema or too large."""
    schema = _parse(source, "JSON schema", "{}")
    if schema is False:
        raise DataError("no reply can match the JSON schema 'false'", remedy="Allow at least one reply.")
    if schema is not True and not isinstance(schema, dict):
        raise DataError("the JSON schema is not an object", remedy='Give an object such as {"type": "object"}.')
    return {} if schema is True else schema


def choice_pattern(source: str) -> str:
    """Return a regular expression that matches exactly the strings in a JSON list."""
    choices = _parse(source, "list of choices", '["yes", "no"]')
    if not isinstance(choices, list) or not choices or not all(isinstance(c, str) and c for c in choices):
        raise DataError("the choices are not a list of non-empty strings", remedy='Give a list such as ["yes", "no"].')
    if len(choices) > MAX_CHOICES:
        raise DataError(
            f"the list has too many choices ({len(choices)} choices)", remedy=f"Give at most {MAX_CHOICES}."
        )
    return "(" + "|".join("".join(map(_literal, choice)) for choice in choices) + ")"


def check_pattern(source: str) -> str:
    """Return a regular expression unchanged. Raises DataError if the expression is empty or too long."""
    _check_text(source, "regular expression", "[0-9]+", MAX_PATTERN)
    return source


def parse_calls(source: str) -> dict[str, Any]:
    """Parse the source of a grammar of kind `calls`: the functions that a reply may call, and the schema of an answer
    without calls (see `core.sampling.Grammar`)."""
    example = '{"tools": [{"name": "add", "parameters": {}}], "many": true}'
    data = _parse(source, "set of functions", example)
    tools = data.get("tools") if isinstance(data, dict) else None
    if (
        not isinstance(tools, list)
        or not tools
        or data.keys() - {"answer"} != {"tools", "many"}
        or not isinstance(data["many"], bool)
        or not isinstance(data.get("answer", {}), dict)
        or not all(isinstance(tool, dict) and tool.keys() == {"name", "parameters"} for tool in tools)
    ):
        raise DataError("the set of functions has the wrong form", remedy=f"Give an object such as {example}.")
    for tool in tools:
        if not isinstance(tool["name"], str) or not _FUNCTION.fullmatch(tool["name"]):
            what = f"{repr(tool['name'])[:60]} is not a function name"
            raise DataError(what, remedy="Use letters, digits, '_', '-', '.'.")
        if not isinstance(tool["parameters"], dict):
            what = f"the parameters of {tool['name']!r} are not a JSON schema"
            raise DataError(what, remedy='Give an object such as {"type": "object"}.')
    return dict(data)


def nesting_depth(value: Any) -> int:
    """Return how deep arrays and objects are nested in a JSON value."""
    below = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(nesting_depth, below), default=0)


def _parse(source: str, kind: str, example: str) -> Any:
    _check_text(source, kind, example, MAX_BYTES)
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


def _check_text(source: str, kind: str, example: str, most: int) -> None:
    if not source:
        raise DataError(f"the {kind} is empty", remedy=f"For example, give {example}.")
    try:
        size = len(source) if len(source) > most else len(source.encode())
    except UnicodeEncodeError:
        what = f"the {kind} contains a lone surrogate"
        raise DataError(what, remedy="Remove the surrogate: no text can match it.") from None
    if size > most:
        raise DataError(f"the {kind} is longer than {most} bytes", remedy="Shorten the text.")


def _literal(character: str) -> str:
    return f"\\x{{{ord(character):x}}}" if character.isascii() and not character.isalnum() else character
