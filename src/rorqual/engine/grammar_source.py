"""What users send as a grammar, checked before anything compiles it: sizes, nesting, JSON that is JSON, nothing to be fetched."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, TypeGuard
from urllib.parse import unquote

from rorqual.core.errors import DataError
from rorqual.engine.grammar_ends import find_endless

MAX_BYTES = 1 << 17
MAX_PATTERN = 1 << 13
MAX_DEPTH = 64
MAX_NODES = 20_000
MAX_REACH = 1000
"""How deep all parts that a schema refers to are nested, added up: 1,300 in a chain were followed, 3,000 ended the process."""
MAX_CHOICES = 1024
MAX_LEAST = 10_000
"""The most that a minimum may ask for: no reply has more characters, items or properties."""

_FUNCTION = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
_COUNT = re.compile(r"(?:(?<=\{)|(?<=,))[0-9]+(?=[,}])")
MARKS = frozenset({'"', r"\"", r"\\"})  # what JSON writes with a backslash, in a class of an expression
_LEAST = ("minLength", "minItems", "minProperties")
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_ABOVE, _BELOW = ("exclusiveMaximum", "maximum"), ("exclusiveMinimum", "minimum")
_DIGITS, _FINEST, _WHOLE, _LARGEST = 15, 1e-60, 2**53 - 1, 2**63
"""llguidance computes with doubles: a bound of more digits would be off in the last, one finer or larger has no expression. Whole ones
are exact to 2^53, and those that end 64 bits happen to be."""
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependentRequired")
_VALUES = ("const", "enum", "default", "example", "examples", "required")


def parse_schema(source: str) -> Any:
    """A JSON schema as an object, or a `DataError` that says what is wrong with it and where."""
    schema = _parse(source, "JSON schema", "{}")
    if schema is True:
        return {}
    if schema is False:
        raise _refuse("the JSON schema is matched by no reply: it is false", "Allow at least one.")
    if not isinstance(schema, dict):
        raise _refuse(f"a JSON schema is an object, not {_name(schema)}", 'Send such as {"type": "object"}.')
    count = 0
    for place, part in _schemas(schema):
        count += 1
        if count > MAX_NODES:
            raise _refuse(f"the JSON schema has more than {MAX_NODES} parts", "Make it smaller.")
        if not isinstance(part, dict):
            continue
        if "x-guidance" in part:
            raise _refuse(f"the JSON schema uses 'x-guidance' at {place}", "It is not taken from users: remove it.")
        if part.get("uniqueItems") is False:
            del part["uniqueItems"]  # asks for nothing, and would be refused
        for pattern in (part.get("pattern"), *_keys(part.get("patternProperties"))):
            if isinstance(pattern, str):
                _check_counts(pattern, f"JSON schema's pattern at {place}")
        target = part.get("$ref")
        if isinstance(target, str) and not target.startswith("#"):
            raise _refuse(
                f"the JSON schema refers to another document at {place}: {_short(target)}, and nothing is fetched",
                "Put what it refers to under $defs, and refer to #/$defs/NAME.",
            )
        _check_enforced(place, part, schema)
        for name in _LEAST:
            least = part.get(name)
            if isinstance(least, int | float) and least > MAX_LEAST:
                raise _refuse(f"the JSON schema asks for {name} above {MAX_LEAST} at {place}", "Ask for less.")
    _check_reach(schema)
    if (endless := find_endless(schema, _resolve)) is not None:
        raise _refuse(
            f"the JSON schema uses {endless[0]!r} at {_short(endless[1])} for what needs another of itself, without end: no value matches",
            "Make a link of the ring optional, or give it an end, such as a list that may be empty or null beside it.",
        )
    return schema


def _check_enforced(place: str, part: dict[str, Any], schema: dict[str, Any]) -> None:
    """Refuse by name what llguidance would take and not keep to."""
    for name in _BOUNDS:
        if not _exact(part.get(name)):
            raise _refuse(
                f"the JSON schema uses {name!r} at {place}, and more than {_DIGITS} digits, or what is out of range, cannot be enforced",
                "Round it.",
            )
    values = [part["const"]] if "const" in part else []
    listed = part.get("enum")
    values += listed if isinstance(listed, list) else []
    # The least number of 64 bits ends llguidance's process.
    if not all(_exact(value) and value != -_LARGEST for value in _leaves(values)):
        raise _refuse(
            f"the JSON schema uses {'const' if 'const' in part else 'enum'!r} at {place} for a number of more than {_DIGITS} digits, or out "
            "of range, which would be written as another",
            "Round it, or make it a text.",
        )
    for name, sign, others in (("exclusiveMinimum", 1, _ABOVE), ("exclusiveMaximum", -1, _BELOW)):
        bound, other = part.get(name), next((part[key] for key in others if key in part), None)
        # Of a number that begins as the bound does, its end is not looked at.
        if (
            _whole(bound)
            and _number(other)
            and bound * sign >= 0
            and 0 < (other - bound) * sign < 1
            and part.get("type") != "integer"
        ):
            raise _refuse(
                f"the JSON schema uses {name!r} at {place} with less than 1 to the bound on the other side, which cannot be enforced",
                "Use 'minimum' or 'maximum' with the last number that you mean.",
            )
    for pattern in (part.get("pattern"), *_keys(part.get("patternProperties"))):
        if isinstance(pattern, str) and _all_but_a_mark(pattern):
            raise _refuse(
                f"the JSON schema uses a 'pattern' at {place} with all characters but a quotation mark or a backslash, which cannot be "
                "enforced: in JSON both are written with a backslash",
                "List the characters that you mean: [a-z0-9 ].",
            )
    required, least = part.get("required"), part.get("minProperties")
    free = part.get("additionalProperties", True) is not False or "patternProperties" in part
    # That a name comes once is not enforced: of those not listed, only the first is sure to count.
    if free and isinstance(least, int | float) and least > (len(required) if isinstance(required, list) else 0) + 1:
        raise _refuse(
            f"the JSON schema uses 'minProperties' at {place} for names that it does not list, which cannot be enforced",
            "List more of them in properties and required.",
        )
    _check_chain(place, part, schema)


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


def _number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole(value: Any) -> TypeGuard[int | float]:
    return _number(value) and float(value).is_integer()


def _all_but_a_mark(pattern: str) -> bool:
    """Whether an expression has a class of all characters but some, `"` or a backslash among them. One pass, whatever is sent."""
    inside = negated = False
    at = 0
    while at < len(pattern):
        part = pattern[at : at + 2] if pattern[at] == "\\" else pattern[at]
        at += len(part)
        if not inside and part == "[":
            inside, negated = True, pattern.startswith("^", at)
            at += negated
        elif inside and part == "]":
            inside = False
        elif inside and negated and part in MARKS:
            return True
    return False


def _check_chain(place: str, part: Any, schema: dict[str, Any]) -> None:
    """Refuse references that lead from one to the next and back, or further than can be a purpose."""
    for _ in range(MAX_DEPTH):
        if not isinstance(part, dict):
            return
        if isinstance(part.get("$ref"), str):
            part = _resolve(schema, part["$ref"])
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
    parts = [
        part["$ref"] for _, part in _schemas(schema) if isinstance(part, dict) and isinstance(part.get("$ref"), str)
    ]
    targets, known = set(parts), dict[int, int]()
    reach = sum(_nesting(_resolve(schema, target), known) for target in targets)
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


def _exact(number: Any) -> bool:
    """Whether a double holds it, to the last digit that was written."""
    if isinstance(number, bool) or not isinstance(number, int | float) or number in (0, _LARGEST - 1, -_LARGEST):
        return True
    if isinstance(number, int):
        return abs(number) <= _WHOLE
    if not _FINEST <= abs(number) <= _LARGEST:
        return False
    return len(Decimal(repr(number)).normalize().as_tuple().digits) <= _DIGITS


def _resolve(schema: Any, pointer: str) -> Any:
    """What `#/$defs/a` points to; None where to nothing, or by an anchor."""
    for step in pointer.split("/")[1:]:
        step = unquote(step).replace("~1", "/").replace("~0", "~")
        if isinstance(schema, list) and step.isdecimal() and int(step) < len(schema):
            schema = schema[int(step)]
        elif isinstance(schema, dict) and step in schema:
            schema = schema[step]
        else:
            return None
    return schema if pointer.startswith(("#/", "#")) and pointer[1:2] in ("", "/") else None


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
            raise _refuse(f"{_short(repr(tool['name']))} is no name of a function", "Use letters, digits, '_', '-'.")
        if not isinstance(tool["parameters"], dict):
            raise _refuse(f"the parameters of {tool['name']!r} are no JSON schema", 'Send such as {"type": "object"}.')
    return dict(found)


def check_pattern(source: str) -> str:
    """The regular expression, if its size is one that is compiled."""
    _check_text(source, "regular expression", "[0-9]+", MAX_PATTERN)
    _check_counts(source, "regular expression")
    return source


def find_keyword(source: str, keyword: str) -> str:
    """Where in a JSON schema a keyword first stands: `#/properties/a`."""
    for place, part in _schemas(json.loads(source)):
        if isinstance(part, dict) and keyword in part:
            return place
    return "#"


def find_cause(source: str, error: str) -> tuple[str, str] | None:
    """Which keyword of a JSON schema llguidance means by an error that does not say it, and where that stands."""
    patterns, formats, counts = list[tuple[str, str]](), list[tuple[str, str]](), list[tuple[str, str]]()
    for place, part in _schemas(json.loads(source)):
        if not isinstance(part, dict):
            continue
        if f"Unknown format: {part.get('format')}" in error:
            formats.append(("format", place))
        if isinstance(part.get("pattern"), str):
            patterns.insert(0 if part["pattern"] in error else len(patterns), ("pattern", place))
        for key in _keys(part.get("patternProperties")):
            patterns.insert(0 if key in error else len(patterns), ("patternProperties", place))
        counts += [(name, place) for name in ("minProperties", "maxProperties") if name in part]
    if "min/maxProperties" in error:
        return next(iter(counts), None)
    return next(iter(formats or (patterns if "regex" in error or "lookaround" in error else [])), None)


def _schemas(schema: Any) -> Iterator[tuple[str, Any]]:
    """Every part of a schema that is a schema, with its place; what is under `const`, `enum` and the like is a value and is not."""
    waiting = [("#", schema)]
    while waiting:
        place, part = waiting.pop()
        yield place, part
        if isinstance(part, list):
            waiting += [(f"{place}/{i}", item) for i, item in reversed(list(enumerate(part)))]
        elif isinstance(part, dict):
            for key, value in reversed(part.items()):
                below = f"{place}/{_short(key)}"
                if key in _NAMED and isinstance(value, dict):
                    waiting += [(f"{below}/{_short(name)}", item) for name, item in reversed(value.items())]
                elif key not in _VALUES and isinstance(value, dict | list):
                    waiting.append((below, value))


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


def _check_text(source: str, kind: str, example: str, most: int) -> None:
    if not source:
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
            raise _refuse(
                f"the {place} repeats something {_short(count)} times", f"At most {MAX_LEAST} can be counted."
            )


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
        raise ValueError(f"{_short(text)} is too large")
    return value


def _literal(character: str) -> str:
    return f"\\x{{{ord(character):x}}}" if character.isascii() and not character.isalnum() else character


def _short(text: str) -> str:
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= 60 else text[:60] + "…"


def _name(value: Any) -> str:
    return {list: "a list", str: "a text", type(None): "null"}.get(type(value), "a number")


def _refuse(what: str, remedy: str) -> DataError:
    return DataError(what, remedy=remedy)
