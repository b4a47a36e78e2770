"""Negate a JSON schema, if the negation can be written as a JSON schema."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

TYPES = ("null", "boolean", "number", "string", "array", "object")
MAX_DEPTH, MAX_BRANCHES = 8, 32
Part = dict[str, Any] | bool
_OPPOSITE: dict[str, Callable[[Any], dict[str, Any]]] = {
    "minimum": lambda value: {"type": "number", "exclusiveMaximum": value},
    "maximum": lambda value: {"type": "number", "exclusiveMinimum": value},
    "exclusiveMinimum": lambda value: {"type": "number", "maximum": value},
    "exclusiveMaximum": lambda value: {"type": "number", "minimum": value},
    "minLength": lambda value: {"type": "string", "maxLength": value - 1},
    "maxLength": lambda value: {"type": "string", "minLength": value + 1},
    "minItems": lambda value: {"type": "array", "maxItems": value - 1},
    "maxItems": lambda value: {"type": "array", "minItems": value + 1},
    "pattern": lambda value: {"type": "string", "pattern": rf"^(?!{_group(value)})(?![\s\S]+{_group(value)})"},
}


def _group(pattern: str) -> str:
    return f"(?:{pattern})"


class NotExpressible(Exception):
    """Raised if a negation cannot be written as a schema."""


def negate(part: Any, resolve: Callable[[str], Any], annotations: Callable[[str], bool], depth: int = 0) -> Part:
    """Return the negation of a subschema. Raises NotExpressible if the negation cannot be written as a schema.

    `resolve` returns the target of a reference. `annotations` returns whether a keyword is an annotation, which
    constrains nothing.
    """
    if isinstance(part, bool):
        return not part
    if depth > MAX_DEPTH or not isinstance(part, dict):
        raise NotExpressible
    branches = list[Part]()
    for keyword, value in part.items():
        if not annotations(keyword):
            branches += _branches(
                keyword, value, part, lambda below: negate(below, resolve, annotations, depth + 1), resolve
            )
    violated = [branch for branch in branches if branch is not False]
    if len(violated) > MAX_BRANCHES:
        raise NotExpressible
    if True in violated:
        return True
    return violated[0] if len(violated) == 1 else {"anyOf": violated} if violated else False


def _branches(
    keyword: str, value: Any, part: dict[str, Any], below: Callable[[Any], Part], resolve: Callable[[str], Any]
) -> list[Part]:
    """Return the negation of one keyword as branches of an `anyOf`. A value that violates the keyword matches at least
    one branch."""
    match keyword:
        case "type":
            return [_other_types(value)]
        case "const":
            return [_other_values([value])]
        case "enum" if isinstance(value, list):
            return [_other_values(value)]
        case "required" if isinstance(value, list):
            return [{"type": "object", "properties": {name: False}} for name in value]
        case "properties" if isinstance(value, dict):
            wrong = {name: below(one) for name, one in value.items()}
            return [
                {"type": "object", "properties": {name: one}, "required": [name]}
                for name, one in wrong.items()
                if one is not False
            ]
        case "anyOf" if isinstance(value, list):
            return [{"allOf": [below(one) for one in value]}]
        case "allOf" if isinstance(value, list):
            return [below(one) for one in value]
        case "not":
            return [value]
        case "$ref" if isinstance(value, str):
            return [below(resolve(value))]
    if (
        keyword not in _OPPOSITE
        or isinstance(value, bool)
        or isinstance(part.get(f"exclusive{keyword[0].upper()}{keyword[1:]}"), bool)
    ):
        raise NotExpressible
    return [False if value == 0 and keyword.startswith("minL") else _OPPOSITE[keyword](value)]


def _other_types(value: Any) -> Part:
    named = [value] if isinstance(value, str) else value
    if not isinstance(named, list) or ("integer" in named and "number" not in named):
        raise NotExpressible
    others = [name for name in TYPES if name not in named]
    return {"type": others} if others else False


def _other_values(values: list[Any]) -> Part:
    """Return a schema that matches everything except the given values. The values must be strings, booleans,
    nulls or numbers."""
    if any(isinstance(value, dict | list) for value in values):
        raise NotExpressible
    texts = [value for value in values if isinstance(value, str)]
    truths = [value for value in values if isinstance(value, bool)]
    numbers = sorted({value for value in values if isinstance(value, int | float) and not isinstance(value, bool)})
    branches: list[Any] = [{"type": ["array", "object", *([] if None in values else ["null"])]}]
    branches.append({"type": "string", **({"pattern": f"^(?!(?:{'|'.join(map(_literal, texts))})$)"} if texts else {})})
    branches += [{"const": truth} for truth in (True, False) if truth not in truths]
    edges: list[Any] = [None, *numbers, None]
    for low, high in pairwise(edges):
        between = {"exclusiveMinimum": low, "exclusiveMaximum": high}
        branches.append({"type": "number"} | {name: edge for name, edge in between.items() if edge is not None})
    return {"anyOf": branches}


def _literal(text: str) -> str:
    return "".join(char if char.isalnum() and char.isascii() else f"\\u{{{ord(char):x}}}" for char in text)
