"""Validate user-supplied grammars before compilation: check size, nesting and JSON syntax, and reject external references."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

from rorqual.core.errors import DataError
from rorqual.engine.grammar.ends import find_endless
from rorqual.engine.grammar.numbers import DIGITS, LARGEST, exact
from rorqual.engine.grammar.refs import parts, resolve, settle, shown
from rorqual.engine.grammar.rewrite import Rewriter
from rorqual.engine.grammar.texts import MAX_LEAST

MAX_BYTES = 1 << 17
MAX_PATTERN = 1 << 13
MAX_DEPTH = 64
MAX_NODES = 20_000
MAX_REACH = 1000
"""Maximum sum of the nesting depths of all referenced subschemas. llguidance handled a reference chain of depth 1,300;
depth 3,000 crashed the process.
"""
MAX_CHOICES = 1024
MAX_LOOSE = 8
"""Maximum number of attempts to rewrite a schema that llguidance rejects."""

_FUNCTION = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
_COUNT = re.compile(r"(?:(?<=\{)|(?<=,))[0-9]+(?=[,}])")


def parse_schema(source: str) -> dict[str, Any]:
    """Parse a JSON schema and rewrite its references as pointers. Raises DataError if the schema is invalid or too
    large."""
    schema = _parse(source, "JSON schema", "{}")
    if schema is True:
        return {}
    if schema is False:
        raise _refuse("no reply can match the JSON schema 'false'", "Allow at least one reply.")
    if not isinstance(schema, dict):
        raise _refuse(
            f"the JSON schema must be an object, not {_name(schema)}", 'Give an object such as {"type": "object"}.'
        )
    for count, (place, part) in enumerate(parts(schema)):
        if count >= MAX_NODES:
            raise _refuse(f"the JSON schema has more than {MAX_NODES} subschemas", "Use fewer subschemas.")
        if isinstance(part, dict) and "x-guidance" in part:
            raise _refuse(f"the JSON schema uses 'x-guidance' at {place}, which is not allowed", "Remove 'x-guidance'.")
    settle(schema)
    for place, part in parts(schema):
        if not isinstance(part, dict):
            continue
        for pattern in (part.get("pattern"), *_keys(part.get("patternProperties"))):
            if isinstance(pattern, str):
                _check_text(pattern, f"JSON schema's pattern at {place}", ".*", MAX_PATTERN, empty=True)
                _check_counts(pattern, f"JSON schema's pattern at {place}")
        _check_values(place, part)
        _check_chain(place, part, schema)
    _check_reach(schema)
    return schema


def rewrite(
    schema: dict[str, Any], loose: frozenset[str] = frozenset()
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Rewrite a schema from `parse_schema` for llguidance.

    Returns the rewritten schema and a list with (keyword, place) for every constraint that the rewritten schema does
    not enforce. If the rewritten schema does not enforce all constraints, finished answers must be validated.
    """
    cycles = find_endless(schema, resolve)
    if any(part is schema for _, _, part in cycles):
        keyword, place, _ = cycles[0]
        raise _refuse(
            f"the {keyword!r} at {shown(place)} in the JSON schema requires itself endlessly, so no value matches",
            "Make one subschema of the cycle optional, or allow an alternative that ends the cycle, such as null or an empty array.",
        )
    rewriter = Rewriter(schema, frozenset(id(part) for _, _, part in cycles), loose)
    rewritten = rewriter.whole()
    if rewritten is False:
        raise _refuse(
            "no reply can match the JSON schema: its keywords contradict each other", "Allow at least one reply."
        )
    return (rewritten if isinstance(rewritten, dict) else {}), rewriter.checked


def _check_values(place: str, part: dict[str, Any]) -> None:
    """Raise DataError for a constant that the grammar cannot reproduce exactly, such as a number of more than 15
    digits."""
    values = [part["const"]] if "const" in part else []
    listed = part.get("enum")
    values += listed if isinstance(listed, list) else []
    # `-LARGEST`, the lowest 64-bit integer, crashes llguidance.
    if not all(exact(value) and value != -LARGEST for value in _leaves(values)):
        raise _refuse(
            f"the {'const' if 'const' in part else 'enum'!r} at {place} in the JSON schema has a number that cannot be "
            f"written exactly: it has more than {DIGITS} digits or is out of range",
            "Round the number, or write it as a string.",
        )


def _leaves(values: list[Any]) -> Iterator[Any]:
    """Yield all scalars within the values."""
    stack = list(values)
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            stack += value.values()
        elif isinstance(value, list):
            stack += value
        else:
            yield value


def _check_chain(place: str, part: Any, schema: dict[str, Any]) -> None:
    """Raise DataError for a chain of references that is circular or has more than `MAX_DEPTH` steps."""
    for _ in range(MAX_DEPTH):
        if not isinstance(part, dict):
            return
        if isinstance(part.get("$ref"), str):
            part = resolve(schema, part["$ref"])
            continue
        only = next((part[name] for name in ("anyOf", "oneOf", "allOf") if name in part), None)
        if not isinstance(only, list) or len(only) != 1:
            return
        part = only[0]
    raise _refuse(
        f"the chain of references from the '$ref' at {place} in the JSON schema is circular or too long",
        f"End the chain within {MAX_DEPTH} references, or add an alternative, for example with anyOf.",
    )


def _check_reach(schema: dict[str, Any]) -> None:
    """Raise DataError if the summed depth of the referenced subschemas is too large. llguidance follows references by
    recursion, and a stack overflow would crash the process.
    """
    pointers = [
        part["$ref"] for _, part in parts(schema) if isinstance(part, dict) and isinstance(part.get("$ref"), str)
    ]
    targets, known = set(pointers), dict[int, int]()
    reach = sum(_nesting(resolve(schema, target), known) for target in targets)
    if reach > MAX_REACH:
        raise _refuse(
            f"the {len(targets)} subschemas that '$ref' uses in the JSON schema "
            f"have a total depth of {reach}, but the limit is {MAX_REACH}",
            "Use fewer $defs, or flatten them.",
        )


def _nesting(part: Any, known: dict[int, int]) -> int:
    """Return the nesting depth of arrays and objects. `known` caches depths by id. Recursion is safe, because `_parse`
    limits the depth."""
    if not isinstance(part, dict | list):
        return 0
    if id(part) not in known:
        below = part.values() if isinstance(part, dict) else part
        known[id(part)] = 1 + max((_nesting(value, known) for value in below), default=0)
    return known[id(part)]


def choice_pattern(source: str) -> str:
    """Return a regular expression that matches exactly the strings in a JSON list."""
    choices = _parse(source, "list of choices", '["yes", "no"]')
    if not isinstance(choices, list) or not choices or not all(isinstance(c, str) and c for c in choices):
        raise _refuse("the choices are not a list of non-empty strings", 'Give a list such as ["yes", "no"].')
    if len(choices) > MAX_CHOICES:
        raise _refuse(f"the list has too many choices ({len(choices)} choices)", f"Give at most {MAX_CHOICES}.")
    return "(" + "|".join("".join(map(_literal, choice)) for choice in choices) + ")"


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
        raise _refuse("the set of functions has the wrong form", f"Give an object such as {example}.")
    for tool in tools:
        if not isinstance(tool["name"], str) or not _FUNCTION.fullmatch(tool["name"]):
            raise _refuse(f"{shown(repr(tool['name']))} is not a function name", "Use letters, digits, '_', '-', '.'.")
        if not isinstance(tool["parameters"], dict):
            what = f"the parameters of {tool['name']!r} are not a JSON schema"
            raise _refuse(what, 'Give an object such as {"type": "object"}.')
    return dict(data)


def check_pattern(source: str) -> str:
    """Return a regular expression unchanged. Raises DataError if the expression is too large to compile."""
    _check_text(source, "regular expression", "[0-9]+", MAX_PATTERN)
    _check_counts(source, "regular expression")
    return source


def find_cause(source: str, error: str) -> tuple[str, str] | None:
    """Guess which keyword of a JSON schema caused `error`. Call this function if llguidance's error names no keyword.
    Returns (keyword, place), or None."""
    patterns = list[tuple[str, str]]()
    for place, part in parts(json.loads(source)):
        if not isinstance(part, dict):
            continue
        if isinstance(part.get("pattern"), str):
            patterns.insert(0 if part["pattern"] in error else len(patterns), ("pattern", place))
        for key in _keys(part.get("patternProperties")):
            patterns.insert(0 if key in error else len(patterns), ("patternProperties", place))
    return next(iter(patterns), None) if "regex" in error else None


def _parse(source: str, kind: str, example: str) -> Any:
    _check_text(source, kind, example, MAX_BYTES)
    if _depth(source) > MAX_DEPTH:
        raise _refuse(f"the {kind} is nested deeper than {MAX_DEPTH} levels", "Flatten the nesting, or use $defs.")
    try:
        parsed = json.loads(source, parse_constant=_not_json, parse_float=_finite)
        json.dumps(parsed, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise _refuse(f"the {kind} contains a lone surrogate", "Remove the surrogate: no text can match it.") from None
    except ValueError as error:
        raise _refuse(f"the {kind} is not JSON: {error}", f"Give JSON such as {example}.") from None
    return parsed


def _check_text(source: str, kind: str, example: str, most: int, *, empty: bool = False) -> None:
    if not source and not empty:
        raise _refuse(f"the {kind} is empty", f"For example, give {example}.")
    # Count characters first, to avoid encoding a source that is far too long.
    try:
        size = len(source) if len(source) > most else len(source.encode())
    except UnicodeEncodeError:
        raise _refuse(f"the {kind} contains a lone surrogate", "Remove the surrogate: no text can match it.") from None
    if size > most:
        raise _refuse(f"the {kind} is longer than {most} bytes", "Shorten the text.")


def _check_counts(pattern: str, place: str) -> None:
    for count in _COUNT.findall(pattern):
        if len(count) > 9 or int(count) > MAX_LEAST:
            raise _refuse(f"the {place} repeats an element {shown(count)} times", f"Repeat at most {MAX_LEAST} times.")


def _depth(source: str) -> int:
    """Return the nesting depth of brackets outside strings. The function does not parse the text, because deep input
    would overflow a parser's stack."""
    depth = deepest = 0
    in_string = escaped = False
    for character in source:
        if in_string:
            in_string = escaped or character != '"'
            escaped = character == "\\" and not escaped
        elif character == '"':
            in_string = True
        elif character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest


def _keys(part: Any) -> list[str]:
    return list(part) if isinstance(part, dict) else []


def _not_json(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{shown(text)} is too large")
    return value


def _literal(character: str) -> str:
    return f"\\x{{{ord(character):x}}}" if character.isascii() and not character.isalnum() else character


def _name(value: Any) -> str:
    return {list: "a list", str: "a string", type(None): "null"}.get(type(value), "a number")


def _refuse(what: str, remedy: str) -> DataError:
    return DataError(what, remedy=remedy)
