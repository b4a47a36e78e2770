"""What users send as a grammar, checked before anything compiles it: sizes, nesting, JSON that is JSON, nothing to be fetched."""

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
"""How deep all parts that a schema refers to are nested, added up: 1,300 in a chain were followed, 3,000 ended the process."""
MAX_CHOICES = 1024
MAX_LOOSE = 8
"""How often a schema is written anew because of what llguidance says against it."""

_FUNCTION = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
_COUNT = re.compile(r"(?:(?<=\{)|(?<=,))[0-9]+(?=[,}])")


def parse_schema(source: str) -> dict[str, Any]:
    """A JSON schema as an object, its references as pointers, or a `DataError` that says what is wrong with it and where."""
    schema = _parse(source, "JSON schema", "{}")
    if schema is True:
        return {}
    if schema is False:
        raise _refuse("the JSON schema is matched by no reply: it is false", "Allow at least one.")
    if not isinstance(schema, dict):
        raise _refuse(f"a JSON schema is an object, not {_name(schema)}", 'Send such as {"type": "object"}.')
    for count, (place, part) in enumerate(parts(schema)):
        if count >= MAX_NODES:
            raise _refuse(f"the JSON schema has more than {MAX_NODES} parts", "Make it smaller.")
        if isinstance(part, dict) and "x-guidance" in part:
            raise _refuse(f"the JSON schema uses 'x-guidance' at {place}", "It is not taken from users: remove it.")
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
    """A schema of `parse_schema` as llguidance enforces it, and the keywords, with their places, that a finished answer must be checked for."""
    rings = find_endless(schema, resolve)
    if any(part is schema for _, _, part in rings):
        keyword, place, _ = rings[0]
        raise _refuse(
            f"the JSON schema uses {keyword!r} at {shown(place)} for what needs another of itself, without end: no value matches",
            "Make a link of the ring optional, or give it an end, such as a list that may be empty or null beside it.",
        )
    rewriter = Rewriter(schema, frozenset(id(part) for _, _, part in rings), loose)
    found = rewriter.whole()
    if found is False:
        raise _refuse(
            "the JSON schema is matched by no reply: its keywords contradict each other", "Allow at least one."
        )
    return (found if isinstance(found, dict) else {}), rewriter.checked


def _check_values(place: str, part: dict[str, Any]) -> None:
    """Refuse numbers that would be written as others."""
    values = [part["const"]] if "const" in part else []
    listed = part.get("enum")
    values += listed if isinstance(listed, list) else []
    # The least number of 64 bits ends llguidance's process.
    if not all(exact(value) and value != -LARGEST for value in _leaves(values)):
        raise _refuse(
            f"the JSON schema uses {'const' if 'const' in part else 'enum'!r} at {place} for a number of more than {DIGITS} digits, or out "
            "of range, which would be written as another",
            "Round it, or make it a text.",
        )


def _leaves(values: list[Any]) -> Iterator[Any]:
    """What stands in values that are no lists and no objects."""
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
        else:
            yield value


def _check_chain(place: str, part: Any, schema: dict[str, Any]) -> None:
    """Refuse references that lead from one to the next and back, or further than can be a purpose."""
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
        f"the JSON schema uses '$ref' at {place} for what is only itself and is matched by no reply",
        f"Say what it is, or allow something beside it, within {MAX_DEPTH} references.",
    )


def _check_reach(schema: dict[str, Any]) -> None:
    """llguidance follows references by recursion: depths that add up to too much would end the process, not the request."""
    pointers = [
        part["$ref"] for _, part in parts(schema) if isinstance(part, dict) and isinstance(part.get("$ref"), str)
    ]
    targets, known = set(pointers), dict[int, int]()
    reach = sum(_nesting(resolve(schema, target), known) for target in targets)
    if reach > MAX_REACH:
        raise _refuse(
            f"the JSON schema uses '$ref' for {len(targets)} parts that are nested {reach} deep together, more than {MAX_REACH}",
            "Use fewer $defs, or flatten them.",
        )


def _nesting(part: Any, known: dict[int, int]) -> int:
    """How deep lists and objects stand in each other; `known`: of those that were seen, by id. No deeper than `MAX_DEPTH` by now."""
    if not isinstance(part, dict | list):
        return 0
    if id(part) not in known:
        below = part.values() if isinstance(part, dict) else part
        known[id(part)] = 1 + max((_nesting(value, known) for value in below), default=0)
    return known[id(part)]


def choice_pattern(source: str) -> str:
    """A regular expression that matches the strings of a JSON list and nothing else."""
    choices = _parse(source, "list of choices", '["yes", "no"]')
    if not isinstance(choices, list) or not choices or not all(isinstance(c, str) and c for c in choices):
        raise _refuse("the choices are not a list of texts that are not empty", 'Send such as ["yes", "no"].')
    if len(choices) > MAX_CHOICES:
        raise _refuse(f"there are {len(choices)} choices", f"Give at most {MAX_CHOICES}.")
    return "(" + "|".join("".join(map(_literal, choice)) for choice in choices) + ")"


def parse_calls(source: str) -> dict[str, Any]:
    """The functions that a reply must call, and the JSON that it may be instead (`request.Grammar`)."""
    example = '{"tools": [{"name": "add", "parameters": {}}], "many": true}'
    found = _parse(source, "set of functions", example)
    tools = found.get("tools") if isinstance(found, dict) else None
    if (
        not isinstance(tools, list)
        or not tools
        or found.keys() - {"answer"} != {"tools", "many"}
        or not isinstance(found["many"], bool)
        or not isinstance(found.get("answer", {}), dict)
        or not all(isinstance(tool, dict) and tool.keys() == {"name", "parameters"} for tool in tools)
    ):
        raise _refuse("the set of functions has another form", f"Send such as {example}.")
    for tool in tools:
        if not isinstance(tool["name"], str) or not _FUNCTION.fullmatch(tool["name"]):
            raise _refuse(f"{shown(repr(tool['name']))} is no name of a function", "Use letters, digits, '_', '-'.")
        if not isinstance(tool["parameters"], dict):
            raise _refuse(f"the parameters of {tool['name']!r} are no JSON schema", 'Send such as {"type": "object"}.')
    return dict(found)


def check_pattern(source: str) -> str:
    """The regular expression, if its size is one that is compiled."""
    _check_text(source, "regular expression", "[0-9]+", MAX_PATTERN)
    _check_counts(source, "regular expression")
    return source


def find_cause(source: str, error: str) -> tuple[str, str] | None:
    """Which keyword of a JSON schema llguidance means by an error that does not say it, and where that stands."""
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
        raise _refuse(f"the {kind} is nested deeper than {MAX_DEPTH}", "Flatten it, or refer to $defs.")
    try:
        parsed = json.loads(source, parse_constant=_not_json, parse_float=_finite)
        json.dumps(parsed, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise _refuse(f"the {kind} holds half of a surrogate pair", "Remove it: no text can match it.") from None
    except ValueError as error:
        raise _refuse(f"the {kind} is not JSON: {error}", f"Send such as {example}.") from None
    return parsed


def _check_text(source: str, kind: str, example: str, most: int, *, empty: bool = False) -> None:
    if not source and not empty:
        raise _refuse(f"the {kind} is empty", f"Send such as {example}.")
    # Characters first: what is far too long is not even encoded.
    try:
        size = len(source) if len(source) > most else len(source.encode())
    except UnicodeEncodeError:
        raise _refuse(f"the {kind} holds half of a surrogate pair", "Remove it: no text can match it.") from None
    if size > most:
        raise _refuse(f"the {kind} is longer than {most} bytes", "Make it shorter.")


def _check_counts(pattern: str, place: str) -> None:
    for count in _COUNT.findall(pattern):
        if len(count) > 9 or int(count) > MAX_LEAST:
            raise _refuse(f"the {place} repeats something {shown(count)} times", f"At most {MAX_LEAST} can be counted.")


def _depth(source: str) -> int:
    """Of brackets that stand outside of strings; found without a parser, which would run out of stack on the worst."""
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
    raise ValueError(f"{name} is not a number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{shown(text)} is too large")
    return value


def _literal(character: str) -> str:
    return f"\\x{{{ord(character):x}}}" if character.isascii() and not character.isalnum() else character


def _name(value: Any) -> str:
    return {list: "a list", str: "a text", type(None): "null"}.get(type(value), "a number")


def _refuse(what: str, remedy: str) -> DataError:
    return DataError(what, remedy=remedy)
