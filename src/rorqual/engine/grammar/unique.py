"""Enumerate all arrays of distinct items, for `uniqueItems` with few allowed values."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, islice, permutations
from typing import Any

MAX_VALUES, MAX_LISTS, MAX_DEPTH = 12, 400, 16


def values_of(part: Any, resolve: Callable[[str], Any], depth: int = 0) -> list[Any] | None:
    """Return all values that a subschema allows, or None if there are too many values or they cannot be enumerated."""
    if not isinstance(part, dict) or depth > MAX_DEPTH:
        return [] if part is False else None
    bound = {
        key: value
        for key, value in part.items()
        if key in ("const", "enum", "$ref", "anyOf", "type", "minimum", "maximum")
    }
    kind = bound.pop("type", None)
    match bound:
        case {"const": value, **rest} if not rest:
            allowed = [value]
        case {"enum": [*values], **rest} if not rest:
            allowed = values
        case {"$ref": str(pointer), **rest} if not rest and kind is None:
            return values_of(resolve(pointer), resolve, depth + 1)
        case {"anyOf": [*branches], **rest} if not rest and kind is None:
            listed = [values_of(branch, resolve, depth + 1) for branch in branches]
            allowed = [value for values in listed for value in values or ()]
            if any(values is None for values in listed):
                return None
        case {"minimum": int(low), "maximum": int(high), **rest} if (
            not rest and kind == "integer" and high - low < MAX_VALUES
        ):
            return list(range(low, high + 1)) if len(part.keys() & _OTHERS) == 0 else None
        case {} if not bound and kind == "boolean":
            return [True, False]
        case {} if not bound and kind == "null":
            return [None]
        case _:
            return None
    if part.keys() & _OTHERS:
        return None
    return _different([value for value in allowed if kind is None or _is(value, kind)])


_OTHERS = {
    "allOf",
    "oneOf",
    "not",
    "if",
    "pattern",
    "format",
    "minLength",
    "maxLength",
    "multipleOf",
    "exclusiveMinimum",
    "exclusiveMaximum",
}


def _is(value: Any, kind: Any) -> bool:
    if isinstance(kind, list):
        return any(_is(value, one) for one in kind)
    types = {"string": str, "boolean": bool, "null": type(None), "array": list, "object": dict}
    if kind in types:
        return isinstance(value, types[kind])
    return isinstance(value, int | float) and not isinstance(value, bool) and (kind == "number" or value == int(value))


def _different(values: list[Any]) -> list[Any]:
    distinct = list[Any]()
    for value in values:
        if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in distinct):
            distinct.append(value)
    return distinct


def arrangements(values: list[Any], least: int, most: int) -> list[list[Any]] | None:
    """Return all lists of `least` to `most` distinct values, or None if there are more than `MAX_LISTS`.

    Each set of values is returned in all orders if this gives at most `MAX_LISTS` lists. Otherwise each set is returned
    once, in the order of `values`.
    """
    for choose in (permutations, combinations):
        lists = list(
            islice(
                (list(one) for size in range(least, min(most, len(values)) + 1) for one in choose(values, size)),
                MAX_LISTS + 1,
            )
        )
        if len(lists) <= MAX_LISTS:
            return lists
    return None
