"""Conversion of pydantic's validation errors into messages that name the field, the problem and the remedy."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from rorqual.core.errors import nearest
from rorqual.core.sampling import PARAMS, TextList, TokenBiases

SHOWN = 40
WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
BIASES = "an object with token ids as its keys"
FORMS: Mapping[str, str] = {
    "prompt": "a string, a list of strings, a list of token ids, or a list of lists of token ids",
    "messages": "a list of messages",
    "messages[]": 'an object such as {"role": "user", "content": "hello"}',
    "messages[].content": "a string or a list of parts",
    "messages[].content[]": 'an object such as {"type": "text", "text": "hello"}',
    "tools[]": 'an object such as {"type": "function", "function": {"name": "add"}}',
    "tool_choice": "'none', 'auto', 'required', or an object with the name of one function",
    "guided_json": "a JSON schema, as an object or as a string",
    "response_format": 'an object such as {"type": "json_object"}',
    **{name: "a string or a list of strings" for name, param in PARAMS.items() if isinstance(param.served, TextList)},
    **{name: BIASES for name, param in PARAMS.items() if isinstance(param.served, TokenBiases)},
}
"""Descriptions of the accepted values, for fields that accept several types. Keys are field paths without list indices."""
PATTERNS: Mapping[str, str] = {
    "^(0|[1-9][0-9]{0,9})$": 'a token id, such as "42"',
    "^[a-zA-Z0-9_.-]{1,64}$": "a name of 1 to 64 letters, digits, dots, dashes and underscores",
    "^[a-zA-Z0-9_-]{1,64}$": "a name of 1 to 64 letters, digits, dashes and underscores",
}
TYPES: Mapping[str, str] = {
    "string_type": "a string",
    "string_unicode": "a string",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "int_parsing_size": "a smaller integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "none_required": "null",
}
"""Descriptions of the accepted values, by pydantic's error type."""


@dataclass(frozen=True)
class Fault:
    """An explained validation error.

    `path`: the invalid field, for example `messages[2].content[0]`. `unknown`: whether the schema lacks this field.
    """

    path: str
    message: str
    unknown: bool = False


def explain(error: ValidationError, data: Any, names: Mapping[str, Collection[str]]) -> Fault:
    """Explain the most relevant error that pydantic found in `data`.

    `names`: the known fields of each object, by the object's path without list indices. The path "" is the top level.
    """
    paths = [(_path(item, data), item) for item in error.errors(include_url=False)]
    # pydantic reports errors of every alternative of a union. Choose the most deeply nested error, and prefer an alternative
    # whose type matches the value.
    parts, item = max(paths, key=lambda pair: (len(pair[0]), pair[1]["type"] not in TYPES, _order(pair[0])))
    path, place = written(parts), written(["" if isinstance(part, int) else part for part in parts])
    if item["type"] == "extra_forbidden":
        parent = place.rpartition(".")[0]
        hint = nearest(str(parts[-1]), names.get(parent, ()))
        more = hint if hint.startswith("Did") else "Leave it out; docs/how-to/serve.md lists the fields."
        return Fault(path, f"`{path}` is not a field{_of(parent)}. {more}", unknown=True)
    if item["type"] in ("missing", "union_tag_not_found"):
        wanted = FORMS.get(place)
        return Fault(path, f"`{path}` is missing. Add it{f': {wanted}' if wanted else ''}.")
    if "[key]" in item["loc"]:
        key = shown(item["input"])
        return Fault(path, f"`{path}` has the key {key}, which is not a token id. Give {BIASES}.")
    same = [other for where, other in paths if where == parts]
    problem, limit = _describe(item)
    wanted = limit or FORMS.get(place) or _join_alternatives([_expected(other) for other in same])
    return Fault(path, f"`{path}` {problem}. Give {wanted}.")


def written(parts: Collection[str | int]) -> str:
    """Join path components, for example to `messages[2].content`. An empty component stands for any index: `messages[]`."""
    text = ""
    for part in parts:
        text += f"[{part}]" if part == "" or isinstance(part, int) else f".{_name(part)}" if text else _name(part)
    return text


def shown(value: Any) -> str:
    """Describe a JSON value briefly for an error message."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case str():
            short = len(value) <= SHOWN and value.isprintable()
            return f"'{value}'" if short else f"a string of {len(value)} characters"
        case list():
            return "a list"
        case dict():
            return "an object"
    text = repr(value)
    return text if len(text) <= SHOWN else f"a number of {len(text)} digits"


def _name(name: str) -> str:
    return name if WORD.fullmatch(name) and len(name) <= 256 else f"{name[:SHOWN]!a}"


def _of(place: str) -> str:
    return f" of `{place}`" if place else " of this request"


def _order(parts: list[str | int]) -> list[int]:
    return [part if isinstance(part, int) else 0 for part in parts]


def _path(item: Mapping[str, Any], data: Any) -> list[str | int]:
    """Return the path of the invalid value in `data`. pydantic's `loc` also names union alternatives; the returned path
    omits them."""
    node, path, tag = data, list[str | int](), False
    *parts, last = item["loc"] or ("",)
    for part in (*parts, last):
        inside = isinstance(node, dict) and part in node
        if tag and isinstance(part, str):
            tag = False  # skip pydantic's tag of a union alternative
        elif inside or (isinstance(node, list) and isinstance(part, int) and part < len(node)):
            path.append(part)
            node = node[part]
        elif str(part).startswith("list[tagged-union["):
            tag = True
    if item["type"] == "missing":
        path.append(last)
    elif item["type"] in ("union_tag_invalid", "union_tag_not_found"):
        path.append("type")
    elif "[key]" in item["loc"]:
        path.pop()
    return path


def _describe(item: Mapping[str, Any]) -> tuple[str, str]:
    """Return (description of the invalid value, violated limit). The limit is "" if there is none."""
    value, limits = item["input"], item.get("ctx") or {}
    if item["type"] in ("too_long", "too_short", "string_too_long", "string_too_short"):
        low, high = limits.get("min_length"), limits.get("max_length")
        unit = "characters" if isinstance(value, str) else "entries"
        bound = f"at least {low} {unit}" if high is None else f"at most {high} {unit}"
        size = f"has {len(value)} {unit}" if hasattr(value, "__len__") else "has too many entries"
        return size, bound
    if item["type"] == "string_pattern_mismatch":
        return f"is {shown(value)}", PATTERNS[limits["pattern"]]
    if item["type"] == "value_error":
        return str(limits["error"]), "a string without it"
    if item["type"] == "union_tag_invalid":
        return f"is {shown(limits['tag'])}", limits["expected_tags"].replace(", ", " or ")
    return f"is {shown(value)}", ""


def _expected(item: Mapping[str, Any]) -> str:
    limits = item.get("ctx") or {}
    match item["type"]:
        case "literal_error" | "enum":
            return str(limits["expected"])
        case "greater_than_equal":
            return f"{limits['ge']:g} or more" if isinstance(limits["ge"], float) else f"{limits['ge']} or more"
        case "greater_than":
            return f"a number above {limits['gt']:g}"
        case "less_than_equal":
            return f"{limits['le']:g} or less" if isinstance(limits["le"], float) else f"{limits['le']} or less"
        case "less_than":
            return f"a number below {limits['lt']:g}"
    return TYPES.get(item["type"], "another value")


def _join_alternatives(wanted: list[str]) -> str:
    distinct = list(dict.fromkeys(wanted))
    return distinct[0] if len(distinct) == 1 else f"{', '.join(distinct[:-1])} or {distinct[-1]}"
