"""Rewrite all references within a JSON schema as pointers: `#/$defs/NAME`, or `#` for the root."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, unquote, urldefrag, urljoin

from rorqual.core.errors import DataError

NAMED = (
    "properties",
    "patternProperties",
    "$defs",
    "definitions",
    "dependentSchemas",
    "dependentRequired",
    "dependencies",
)
VALUES = ("const", "enum", "default", "example", "examples", "required")
REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
HOLDERS = ("$defs", "definitions")


def resolve(schema: Any, pointer: str) -> Any:
    """Return the target of a pointer such as `#/$defs/a`, or None if it does not exist or the reference is an anchor."""
    for step in pointer.split("/")[1:]:
        step = unquote(step).replace("~1", "/").replace("~0", "~")
        if isinstance(schema, list) and step.isdecimal() and int(step) < len(schema):
            schema = schema[int(step)]
        elif isinstance(schema, dict) and step in schema:
            schema = schema[step]
        else:
            return None
    return schema if pointer.startswith(("#/", "#")) and pointer[1:2] in ("", "/") else None


def parts(schema: Any) -> Iterator[tuple[str, Any]]:
    """Yield (place, part) for every part of a schema. Values under `const`, `enum` and the like are not parts."""
    for pointer, part, _ in _based(schema):
        yield pointer, part


def shown(name: str) -> str:
    """Return a name as printable text of at most 61 characters, for messages."""
    name = name if name.isprintable() else ascii(name)
    return name if len(name) <= 60 else name[:60] + "…"


def _based(schema: Any) -> Iterator[tuple[str, Any, str]]:
    """Yield (place for messages, part, base address of the references in the part) for every part."""
    waiting = [("#", schema, "")]
    while waiting:
        place, part, base = waiting.pop()
        if isinstance(part, dict) and isinstance(part.get("$id"), str) and not part["$id"].startswith("#"):
            base = urljoin(base, part["$id"])
        yield place, part, base
        if isinstance(part, list):
            waiting += [(f"{place}/{i}", item, base) for i, item in reversed(list(enumerate(part)))]
        elif isinstance(part, dict):
            for key, value in reversed(part.items()):
                below = f"{place}/{shown(key)}"
                if key in NAMED and isinstance(value, dict):
                    waiting += [(f"{below}/{shown(name)}", item, base) for name, item in reversed(value.items())]
                elif key not in VALUES and isinstance(value, dict | list):
                    waiting.append((below, value, base))


def settle(schema: dict[str, Any]) -> None:
    """Rewrite every reference of `schema` as a pointer, in place, and move the targets to `$defs`.

    Raises DataError for a reference to another document, or to a target that does not exist or is ambiguous.
    """
    if not any(isinstance(part, dict) and part.keys() & set(REFERENCES) for _, part in parts(schema)):
        return
    known = _addresses(schema)
    anchors = [
        part["$dynamicAnchor"] for _, part in parts(schema) if isinstance(part, dict) and "$dynamicAnchor" in part
    ]
    names: dict[int, str] = {id(schema): "#"}
    for holder in HOLDERS:
        held = schema.get(holder)
        for name, part in held.items() if isinstance(held, dict) else ():
            names.setdefault(id(part), f"#/{holder}/{escaped(name)}")
    moved: dict[str, Any] = {}
    for place, part, base in list(_based(schema)):
        for keyword in REFERENCES if isinstance(part, dict) else ():
            target = part.get(keyword)
            if not isinstance(target, str):
                continue
            found = _found(schema, target, base, known)
            if keyword == "$dynamicRef" and anchors.count(target.rpartition("#")[2]) > 1:
                raise DataError(
                    f"the '$dynamicRef' at {place} in the JSON schema has several targets of the same name, which is not supported",
                    remedy="Use $ref.",
                )
            if found is None:
                _missing(place, keyword, target)
            if id(found) not in names:
                name = f"part {len(moved)}"
                moved[name], names[id(found)] = found, f"#/$defs/{escaped(name)}"
            _write(part, keyword, names[id(found)])
    if moved:
        held = schema.get("$defs")
        schema["$defs"] = {**(held if isinstance(held, dict) else {}), **moved}


def _write(part: dict[str, Any], keyword: str, pointer: str) -> None:
    if keyword == "$ref":
        part["$ref"] = pointer
        return
    del part[keyword]
    if "$ref" in part:
        part["allOf"] = [*part.get("allOf", []), {"$ref": pointer}]
    else:
        part["$ref"] = pointer


def escaped(name: str) -> str:
    """Escape a name for a JSON pointer."""
    return quote(name.replace("~", "~0").replace("/", "~1"), safe="~")


def _addresses(schema: Any) -> dict[str, Any]:
    """Map the full address of every part with an `$id` or an anchor to that part."""
    found: dict[str, Any] = {}
    for _, part, base in _based(schema):
        if not isinstance(part, dict):
            continue
        if isinstance(part.get("$id"), str) and not part["$id"].startswith("#"):
            found.setdefault(urldefrag(base)[0], part)
        for keyword in ("$anchor", "$dynamicAnchor", "$id"):
            if isinstance(name := part.get(keyword), str) and (keyword != "$id" or name.startswith("#")):
                found.setdefault(f"{urldefrag(base)[0]}#{name.removeprefix('#')}", part)
    return found


def _found(schema: Any, target: str, base: str, known: dict[str, Any]) -> Any:
    address, fragment = urldefrag(
        urljoin(base, target) if not target.startswith("#") else f"{urldefrag(base)[0]}{target}"
    )
    document = known.get(address, schema if not address else None)
    if document is None:
        return None
    if not fragment or fragment.startswith("/"):
        found = resolve(document, f"#{fragment}")
        return resolve(schema, f"#{fragment}") if found is None else found
    return known.get(f"{address}#{fragment}")


def _missing(place: str, keyword: str, target: str) -> None:
    if not target.startswith("#"):
        raise DataError(
            f"the JSON schema refers to another document at {place}: {shown(target)}, which is not fetched",
            remedy="Put the target under $defs, and refer to it as #/$defs/NAME.",
        )
    raise DataError(
        f"the {keyword!r} at {place} in the JSON schema refers to {shown(target)}, which does not exist",
        remedy="Put the target under $defs, and refer to it as #/$defs/NAME.",
    )
