"""Conversion of pydantic's validation errors into messages that name the field, the problem and the remedy."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from rorqual.core.errors import nearest

SHOWN = 40
WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
EXPECTED = "Input should be "
"""How pydantic's messages about a single value begin."""
NOISE = re.compile(r" (or instance of \w+|or object to extract fields from|after validation)")
"""Parts of pydantic's messages that say something about Python and not about the request."""


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
    parts, item = max(paths, key=lambda pair: (len(pair[0]), not _is_type(pair[1]), _order(pair[0])))
    path = written(parts)
    if item["type"] == "extra_forbidden":
        parent = written(["" if isinstance(part, int) else part for part in parts[:-1]])
        hint = nearest(str(parts[-1]), names.get(parent, ()))
        more = hint if hint.startswith("Did") else "Leave it out; docs/how-to/serve.md lists the fields."
        return Fault(
            path, f"`{path}` is not a field of {f'`{parent}`' if parent else 'this request'}. {more}", unknown=True
        )
    if item["type"] in ("missing", "union_tag_not_found"):
        return Fault(path, f"`{path}` is missing. Add it; docs/how-to/serve.md lists its values.")
    if item["type"] == "value_error":
        return Fault(path, f"`{path}` {item['ctx']['error']}.")
    same = [other for where, other in paths if where == parts and _is_type(other) == _is_type(item)]
    messages = dict.fromkeys(NOISE.sub("", other["msg"]).replace("a valid dictionary", "an object") for other in same)
    wanted = " or ".join(message.removeprefix(EXPECTED) for message in messages)
    if all(message.startswith(EXPECTED) for message in messages):
        wanted = f"It must be {wanted}"
    problem = "has the key" if "[key]" in item["loc"] else "is"
    value = item.get("ctx", {}).get("tag", item["input"])
    return Fault(path, f"`{path}` {problem} {shown(value)}. {wanted}.")


def _is_type(item: Mapping[str, Any]) -> bool:
    """Return whether a value has the wrong type, and not only a wrong size or content."""
    return str(item["type"]).endswith("_type")


def written(parts: Collection[str | int]) -> str:
    """Join path components, for example to `messages[2].content`. An empty component stands for any index: `messages[]`."""
    text = ""
    for part in parts:
        text += f"[{part}]" if part == "" or isinstance(part, int) else f".{_name(part)}" if text else _name(part)
    return text


def shown(value: Any) -> str:
    """Describe a JSON value briefly for an error message."""
    if isinstance(value, list | dict):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    if isinstance(value, str):
        short = len(value) <= SHOWN and value.isprintable()
        return f"'{value}'" if short else f"a string of {len(value)} characters"
    text = (
        {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else repr(value)
    )
    return text if len(text) <= SHOWN else f"a number of {len(text)} digits"


def _name(name: str) -> str:
    return name if WORD.fullmatch(name) and len(name) <= 256 else f"{name[:SHOWN]!a}"


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
