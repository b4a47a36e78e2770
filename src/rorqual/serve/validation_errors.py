"""Conversion of pydantic's validation errors into API errors that name the field."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from rorqual.core.errors import suggest_name
from rorqual.serve.errors import ApiError, bad_request

M = TypeVar("M", bound=BaseModel)
SHOWN, LONGEST = 40, 256
"""Maximum number of characters in an error message of a value (`SHOWN`), and of a field's path (`LONGEST`)."""


def api_error_from_pydantic(error: ValidationError, data: Any, names: Collection[str]) -> ApiError:
    """Return the API error for the most deeply nested error that pydantic found in `data`. `names`: the known top-level fields.

    pydantic reports an error for each alternative of a union. The errors for one field are joined into one message.
    """
    places = [(_invalid_value_path(item, data), item) for item in error.errors(include_url=False)]
    place = max((place for place, _ in places), key=_depth_sort_key)
    items = [item for other, item in places if other == place]
    kinds, path = {item["type"] for item in items}, join_path(place)[:LONGEST]
    if "extra_forbidden" in kinds:
        hint = suggest_name(path, names) if len(place) == 1 else "Leave it out."
        return bad_request(f"`{path}` is not a field of this request. {hint}", path, "unknown_parameter")
    if "missing" in kinds:
        return bad_request(f"`{path}` is missing. Add it.", path)
    messages = dict.fromkeys(
        str(item["msg"]).removeprefix("Value error, ").replace("valid tuple", "valid list") for item in items
    )
    problem = f"`{path}` is {describe_value(items[0]['input'])}. {'; or '.join(messages)}."
    return bad_request(problem, path, "too_large" if {"too_long", "string_too_long"} & kinds else None)


def validated(schema: type[M], data: Any) -> M:
    """Return `data` as an instance of the pydantic model `schema`. Raises ApiError if `data` is invalid."""
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        raise api_error_from_pydantic(error, data, {*schema.model_fields}) from None


def join_path(place: Collection[str | int]) -> str:
    """Join the components of a field's path, for example to `messages[2].content`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")


def describe_value(value: Any) -> str:
    """Describe a JSON value in a few characters, for an error message."""
    if isinstance(value, list | tuple | dict):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _depth_sort_key(place: list[str | int]) -> tuple[int, list[int]]:
    """Return the sort key of a field's path. The most deeply nested path has the largest key; among equally deep paths, the
    path with the largest list indices."""
    return len(place), [part for part in place if isinstance(part, int)]


def _invalid_value_path(item: Mapping[str, Any], data: Any) -> list[str | int]:
    """Return the path of the invalid value in `data`. pydantic's `loc` also names alternatives of unions; the returned path
    omits them."""
    node, place, tag = data, list[str | int](), False
    for part in item["loc"]:
        inside = isinstance(node, dict) and part in node
        if tag and isinstance(part, str):
            tag = False  # the tag of a union's alternative
        elif inside or (isinstance(node, list) and isinstance(part, int) and part < len(node)):
            place.append(part)
            node = node[part]
        elif str(part).startswith("list[tagged-union["):
            tag = True
    if item["type"] == "missing":
        place.append(item["loc"][-1])
    return place
